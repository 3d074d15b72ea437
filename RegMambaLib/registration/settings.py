"""Every setting of a registration, declared once for the command line, Slicer, presets and the report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InputError

CHOICES: dict[str, tuple[str, ...]] = {
    "affine": ("affine", "similarity", "rigid", "none"),
    "metric": ("auto", "lncc", "mind"),
    "scan": ("auto", "numba", "torch", "triton", "mamba_ssm"),
}
# Largest Gaussian, voxels.
LARGEST_SIGMA = 10.0
KINDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple: "a list of whole numbers, each at least 0",
}


def _setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Settings:
    """Settings of `register`; immutable. Every field has a `help`, and a range or choices where they apply.

    Use `Settings(metric="mind")`, `Settings.from_dict`, `Settings.load(preset.json)`; bad names and values
    raise `InputError`.
    """

    affine: str = _setting("affine", "Linear stage: affine, similarity, rigid or none (already aligned).")
    principal_axes: bool = _setting(
        False, "Also start the linear stage from the principal axes (turns of more than 45 degrees)."
    )
    weights: str = _setting(
        "auto",
        "Network weights: auto (by contrast), a shipped name, a .safetensors or published .pth file, or none to skip.",
    )
    structures: bool = _setting(
        True, "Let structures and cortex pull that a network finds in T1 brains; only with the weights brain-t1 (auto)."
    )
    metric: str = _setting("auto", "Similarity in refinement: auto (by contrast), lncc or mind.")
    window: int = _setting(5, "Side of the LNCC window, voxels (odd).", 3, 21)
    spacing: float = _setting(
        0.0, "Voxel size of the working grid, mm; 0 takes the fixed image's, coarser for very large ones.", 0, 20
    )
    iterations: tuple[int, ...] = _setting(
        (30, 12, 4), "Refinement iterations from the coarsest to the finest level; empty skips refinement."
    )
    extra_iterations: bool = _setting(
        True, "Up to 30 iterations at the finest level where there is little anatomy, unless none are wanted there."
    )
    step: float = _setting(0.85, "Largest refinement step, voxels of the level.", 0.01, 2.0)
    smooth_update: float = _setting(
        1.0, "Gaussian smoothing of each refinement update, voxels (sigma).", 0, LARGEST_SIGMA
    )
    smooth_total: float = _setting(
        0.7, "Gaussian smoothing of the whole displacement, voxels (sigma).", 0, LARGEST_SIGMA
    )
    guide: bool = _setting(False, "Let the given label maps pull too (soft Dice).")
    guide_weight: float = _setting(1.0, "Weight of label guidance against image similarity.", 0, 100)
    repair: bool = _setting(True, "Remove every remaining fold locally at the end.")
    uncertainty: bool = _setting(False, "Also make a map of how far off the result probably is, mm.")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    scan: str = _setting("auto", "Scan backend: auto, numba, torch, triton or mamba_ssm.")
    threads: int = _setting(0, "CPU threads; 0 uses all.", 0, 1024)
    seed: int = _setting(0, "Seed of everything random.", 0, 2**31 - 1)

    def __post_init__(self) -> None:
        if isinstance(self.iterations, list):
            object.__setattr__(self, "iterations", tuple(self.iterations))
        hints = get_type_hints(type(self))
        for f in fields(self):
            _check(f.name, getattr(self, f.name), hints[f.name], f.metadata)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Settings from a plain dict; unknown names raise `InputError`."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"Unknown setting {', '.join(unknown)}; known are {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> Settings:
        """Settings from a JSON file (a preset)."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read the settings file {path}: {error}. Give a JSON file.") from error
        if not isinstance(values, dict):
            raise InputError(f"The settings file {path} holds no JSON object of names and values.")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self) | {"iterations": list(self.iterations)}


def _check(name: str, value: Any, hint: Any, metadata: Any) -> None:
    wanted = get_origin(hint) or hint
    if wanted is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    elif wanted is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    else:
        good = isinstance(value, wanted)
    if wanted is tuple:
        inner = get_args(hint)[0]
        good = good and all(isinstance(v, inner) and not isinstance(v, bool) and v >= 0 for v in value)
    if not good:
        raise InputError(f"Setting {name} must be {KINDS[wanted]}, not {value!r}.")
    if name in CHOICES and value not in CHOICES[name]:
        raise InputError(f"Setting {name} must be one of {', '.join(CHOICES[name])}, not {value!r}.")
    if name == "window" and value % 2 == 0:
        raise InputError(f"Setting window must be odd, not {value}.")
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        raise InputError(f"Setting {name} must lie between {low} and {high}, not {value}.")

"""Which device computes."""

from __future__ import annotations

import warnings
from functools import cache

from ..errors import InputError, is_out_of_memory


def find_device(name: str) -> str:
    """A usable torch device name for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        InputError: the device is unknown or not there.
    """
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() and _cuda_works() else "cpu"
    kind, _, number = name.partition(":")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there or (":" in name and not number.isdecimal()):
        raise InputError(f"Unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps.")
    if not there[kind] or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise InputError(f"The device {name!r} is not available here; use cpu or auto.")
    return name


@cache
def _cuda_works() -> bool:
    """Whether CUDA computes: torch also sees cards that it was not built for. Tried once per process."""
    import torch

    try:
        return float(torch.ones(1, device="cuda") + 1) == 2
    except Exception as error:
        if is_out_of_memory(error):
            return True
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"The graphics card cannot be used ({reason}); the CPU is.", stacklevel=2)
        return False

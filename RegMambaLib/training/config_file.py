"""A training configuration from a YAML file, the name of a shipped one, and `name=value` texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from RegMambaLib.errors import InputError, MissingDependencyError
from RegMambaLib.training.config import TrainingConfig
from RegMambaLib.training.tree import tree_from

INSTALL = 'pip install "regmamba[train]"'
SHIPPED = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """The names of the configurations that ship."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def load_config(source: str | Path, assignments: Sequence[str] = ()) -> TrainingConfig:
    """Read and check a configuration.

    Args:
        source: a YAML file, or the name of a shipped configuration.
        assignments: texts such as "losses.mse=1" that replace values of the file; the value is YAML.

    Raises:
        InputError: no such file, no YAML, an unknown name or a bad value.
        MissingDependencyError: pyyaml is not installed.
    """
    file = Path(source)
    if not file.is_file() and str(source) in shipped_configs():
        file = SHIPPED / f"{source}.yaml"
    try:
        values = _parse(file.read_text(encoding="utf-8"), str(source))
    except (OSError, UnicodeError) as error:
        names = ", ".join(shipped_configs())
        raise InputError(f"Cannot read the configuration {source}; give a YAML file or one of {names}.") from error
    values = {} if values is None else values
    if isinstance(values, dict):
        for text in assignments:
            _assign(values, text)
    return tree_from(TrainingConfig, values)


def _assign(values: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    *branches, leaf = name.strip().split(".")
    if not equals or not leaf:
        raise InputError(f"--set takes name=value, not {text!r}; --set losses.mse=1, for instance.")
    for branch in branches:
        if values.get(branch) is None:
            values[branch] = {}
        values = values[branch]
        if not isinstance(values, dict):
            raise InputError(f"--set {name.strip()}: {branch} is no branch with names of its own.")
    values[leaf] = _parse(value, f"--set {name.strip()}")


def _parse(text: str, source: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError(f"Training configurations need pyyaml; {INSTALL}.") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML ({' '.join(str(error).split())}); correct it there.") from error

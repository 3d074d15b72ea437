"""Plain values, as YAML gives them -> a tree of frozen dataclasses, each value checked and each error one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from RegMambaLib.errors import InputError

T = TypeVar("T")
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    dict: "a mapping",
}


def tree_from(kind: type[T], values: Any, where: str = "", *, base: T | None = None) -> T:
    """An instance of a frozen dataclass from a mapping; what is not given keeps its default.

    The metadata of its fields may hold `low`, `high` and `choices`.

    Args:
        where: name of this branch in messages.
        base: an instance to take defaults from.

    Raises:
        InputError: an unknown name (the nearest known one is given), a value of a wrong kind or out of range.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where or 'The configuration'} must be a mapping of names and values, not {values!r}.")
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    given = {} if base is None else {name: getattr(base, name) for name in known}
    for name, value in values.items():
        path = f"{where}.{name}" if where else str(name)
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"There is no {path}; {hint}")
        given[name] = _value(hints[name], value, path, known[name].metadata)
    for name, f in known.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where}{where and '.'}{name} is missing: {f.metadata.get('help', 'give it')}.")
    return kind(**given)


def plain(tree: Any, paths: Callable[[Path], str] = str) -> Any:
    """The mappings, lists, numbers and texts that JSON and YAML hold, of a dataclass tree; `paths` writes a path."""
    if is_dataclass(tree) and not isinstance(tree, type):
        tree = asdict(tree)
    if isinstance(tree, Mapping):
        return {name: plain(value, paths) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value, paths) for value in tree]
    return paths(tree) if isinstance(tree, Path) else tree


def _value(hint: Any, value: Any, where: str, metadata: Mapping[str, Any]) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not type(None))
    if is_dataclass(hint):
        return value if isinstance(value, hint) else tree_from(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _values(get_args(hint), value, where, metadata)
    wanted = get_origin(hint) or hint
    if wanted is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    # YAML reads 1e-3 as text and 32 as a number.
    if wanted is float and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if wanted is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise InputError(f"{where} must be {_KINDS[wanted]}, not {value!r}.")
    if wanted in (int, float):
        _check_range(value, where, metadata)
        return wanted(value)
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise InputError(f"{where} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def _values(hints: tuple[Any, ...], value: Any, where: str, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError(f"{where} must be a list, not {value!r}.")
    kinds = (hints[0],) * len(value) if hints[-1] is Ellipsis else hints
    if len(value) != len(kinds):
        raise InputError(f"{where} must have {len(kinds)} values, not {len(value)}.")
    return tuple(
        _value(kind, item, f"{where}[{n}]", metadata) for n, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _check_range(value: float, where: str, metadata: Mapping[str, Any]) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise InputError(f"{where} must be a number {span if low is not None else 'that is finite'}, not {value}.")

"""Tables of label names: those that come along (`labels/*.json`) and a user's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError

FOLDER = Path(__file__).parent / "labels"


@dataclass(frozen=True)
class LabelTable:
    """What the values of a label map mean.

    Attributes:
        name: of the table.
        source: where names and numbers come from.
        names: every value that may occur, without background.
        evaluated: the values that the literature evaluates; a subset of `names`.
        landmarks: values that lie left, right, front, back, top and bottom in the body, for finding the
            orientation of a volume without a usable header; empty if the table has none.
    """

    name: str
    source: str
    names: dict[int, str]
    evaluated: frozenset[int]
    landmarks: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def kept(self, every: bool) -> dict[int, str]:
        """Names of all values, or of the evaluated ones."""
        return {value: name for value, name in sorted(self.names.items()) if every or value in self.evaluated}


def shipped_tables() -> list[str]:
    """Names of the tables that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_table(name: str | Path) -> LabelTable:
    """A table that came along, by its name, or a JSON file.

    The file maps values to names, `{"1": "hippocampus"}`, or is of the form of the shipped tables: `names` or
    `base` (a shipped table whose names and landmarks it takes), `source`, `evaluated`, `landmarks`.

    Raises:
        InputError: neither exists, or the file is no such table.
    """
    path = FOLDER / f"{name}.json" if str(name) in shipped_tables() else Path(name)
    if not path.is_file():
        raise InputError(
            f"There is no label table {str(name)!r}; give one of {', '.join(shipped_tables())}, or a JSON file "
            'such as {"1": "hippocampus"}.'
        )
    try:
        return _table(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is no label table ({error}); write it as JSON: {{"1": "hippocampus", "2": "amygdala"}}.'
        ) from error


def _table(name: str, raw: dict[str, Any]) -> LabelTable:
    if not {"names", "base"} & raw.keys():
        raw = {"names": raw}
    base = load_table(raw["base"]) if "base" in raw else LabelTable("", "", {}, frozenset())
    names = base.names | {int(value): str(text) for value, text in raw.get("names", {}).items()}
    evaluated = frozenset(int(value) for value in raw.get("evaluated", names))
    landmarks = {place: tuple(values) for place, values in raw.get("landmarks", base.landmarks).items()}
    if min(names, default=1) < 1 or not evaluated <= names.keys():
        raise ValueError("values are whole numbers from 1, and evaluated values have names")
    return LabelTable(name, str(raw.get("source", "the user")), names, evaluated, landmarks)

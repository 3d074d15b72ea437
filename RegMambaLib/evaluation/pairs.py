"""Lists of image pairs to evaluate: a CSV with one pair a row."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import InputError
from ..io.images import WRITABLE

METHOD = "regmamba"
REQUIRED = ("fixed", "moving")
FILES = ("fixed_labels", "moving_labels", "fixed_landmarks", "moving_landmarks", "mask")
CHAINS = ("transform", "inverse")
NUMBERS = ("seconds", "memory_mb")
COLUMNS = ("pair", "method", *REQUIRED, *FILES, *CHAINS, *NUMBERS)


@dataclass(frozen=True)
class PairFiles:
    """One row of a list: what to compare, and with what transform.

    Attributes:
        name: of the pair; the same in the lists of other methods.
        files: existing or not, under the names of `REQUIRED` and `FILES`, as far as given.
        transform: fixed -> moving, in the order in which a point passes them; empty: register the pair.
        inverse: moving -> fixed, likewise.
        numbers: what the method took, as measured elsewhere: "seconds", "memory_mb".
    """

    name: str
    method: str
    files: Mapping[str, Path]
    transform: tuple[Path, ...]
    inverse: tuple[Path, ...]
    numbers: Mapping[str, float]

    @property
    def folder(self) -> str:
        """Where its result lies, below that of the evaluation."""
        return f"pairs/{_file_name(self.method)}/{_file_name(self.name)}"


def read_pairs(path: str | Path) -> list[PairFiles]:
    """The pairs of a CSV; paths are relative to it. See docs/evaluation.md for the columns.

    Raises:
        InputError: the list is missing or empty, lacks a column, or a row is incomplete or repeats another's name.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="")
            header, rows = reader.fieldnames or [], list(reader)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no readable CSV; save the list of pairs as comma-separated text.") from error
    _check_header(path, header)
    if not rows:
        raise InputError(f"{path} lists no pair; give a row for each.")
    pairs = [_pair(path, row, line) for line, row in enumerate(rows, 2)]
    seen: set[str] = set()
    for pair in pairs:
        if pair.folder.lower() in seen:
            raise InputError(
                f"{path} has two pairs called {pair.name} of the method {pair.method}; give each a name of its own "
                "in a column pair."
            )
        seen.add(pair.folder.lower())
    return pairs


def _check_header(path: Path, header: Sequence[str]) -> None:
    names = [name.strip() for name in header]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(f"{path} lacks the column {' and '.join(missing)}; its first line must name the columns.")
    for name in names:
        # Other columns are the user's own; but a slip in an optional one must not go unnoticed.
        close = get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if name not in COLUMNS and close:
            raise InputError(f"{path} has a column {name}; call it {close[0]} if that is meant, else something else.")


def _pair(path: Path, row: dict[str, str | None], line: int) -> PairFiles:
    if "" in row:
        raise InputError(f"{path}, line {line}, has more cells than the first line names columns; correct it.")
    cells = {name.strip(): (value or "").strip() for name, value in row.items()}
    for name in REQUIRED:
        if not cells[name]:
            raise InputError(f"{path}, line {line}, names no {name} image; fill the cell or remove the row.")
    for first, second in (("fixed_labels", "moving_labels"), ("fixed_landmarks", "moving_landmarks")):
        if bool(cells.get(first)) != bool(cells.get(second)):
            raise InputError(f"{path}, line {line}, has only one of {first} and {second}; give both or neither.")
    if cells.get("inverse") and not cells.get("transform"):
        raise InputError(f"{path}, line {line}, has an inverse without a transform; give the transform too.")
    numbers = {}
    for name in NUMBERS:
        try:
            if cells.get(name):
                numbers[name] = float(cells[name])
        except ValueError as error:
            raise InputError(f"{path}, line {line}: {name} is no number: {cells[name]}.") from error

    def chain(name: str) -> tuple[Path, ...]:
        return tuple(path.parent / part.strip() for part in cells.get(name, "").split(";") if part.strip())

    return PairFiles(
        name=cells.get("pair") or f"{_stem(cells['fixed'])}__{_stem(cells['moving'])}",
        method=cells.get("method") or METHOD,
        files={name: path.parent / cells[name] for name in (*REQUIRED, *FILES) if cells.get(name)},
        transform=chain("transform"),
        inverse=chain("inverse"),
        numbers=numbers,
    )


def _stem(path: str) -> str:
    name = Path(path).name
    return next((name[: -len(end)] for end in WRITABLE if name.lower().endswith(end)), name)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip(".") or "_"

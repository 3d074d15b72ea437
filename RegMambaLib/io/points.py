"""Point lists: CSV, Slicer's .fcsv and .mrk.json. What is not a position is written back as it was read."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .atomic import writing

SUFFIXES = (".csv", ".fcsv", ".mrk.json")
_FLIP = {"lps": np.array([1.0, 1.0, 1.0]), "ras": np.array([-1.0, -1.0, 1.0])}
_FCSV_SPACES = {"0": "ras", "1": "lps", "ras": "ras", "lps": "lps"}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_MARKUPS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")


@dataclass(frozen=True)
class Points:
    """Positions and all that stood around them in their file.

    Attributes:
        positions: (n, 3) LPS mm.
        suffix: one of `SUFFIXES`, the format of the file.
        space: "lps" or "ras", in which the file states positions.
        content: the parsed file: CSV rows (lists of text, header first), .fcsv lines, or the JSON object.
    """

    positions: np.ndarray
    suffix: str
    space: str
    content: Any

    def moved_to(self, positions: np.ndarray) -> Points:
        """The same points at other positions, (n, 3) LPS mm."""
        return replace(self, positions=np.asarray(positions, float).reshape(-1, 3))


def is_points(path: str | Path) -> bool:
    """Whether the name says a point list."""
    return Path(path).name.lower().endswith(SUFFIXES)


def read_points(path: str | Path, *, csv_space: str = "lps") -> Points:
    """Read a point list.

    Args:
        path: `.csv` with a header that names x, y and z (other columns are kept), `.fcsv`, or `.mrk.json`.
        csv_space: how a CSV states positions: "lps" (as ANTs does) or "ras". The other formats say it
            themselves; a `.fcsv` that does not is RAS, as Slicer takes it.

    Raises:
        InputError: missing, another format, or no valid positions.
    """
    path = Path(path)
    if csv_space not in _FLIP:
        raise InputError(f"The space of points is lps or ras, not {csv_space}.")
    suffix = _suffix(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable text; give a point list ({', '.join(SUFFIXES)}).") from error
    content: Any
    try:
        if suffix == ".csv":
            space, content = csv_space, list(csv.reader(io.StringIO(text)))
            columns = _csv_columns(content)
            found = [[float(row[n]) for n in columns] for row in content[1:] if row]
        elif suffix == ".fcsv":
            content = text.splitlines()
            space = _fcsv_space(content)
            found = [[float(v) for v in content[n].split(",")[1:4]] for n in _fcsv_rows(content)]
        else:
            content = json.loads(text)
            space = _markups_space(content)
            found = [point["position"] for point in _control_points(content)]
        if any(len(position) != 3 for position in found):
            raise ValueError("a position needs three numbers")
        positions = np.array(found, float).reshape(-1, 3) * _FLIP[space]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no valid {suffix} point list: {error}; save it again.") from error
    if not np.isfinite(positions).all():
        raise InputError(f"{path} has positions that are NaN or infinite; remove those points.")
    return Points(positions, suffix, space, content)


def write_points(points: Points, path: str | Path) -> None:
    """Write points in the format and space in which they were read.

    Raises:
        InputError: the name says another format, or the file cannot be written.
    """
    path = Path(path)
    if _suffix(path) != points.suffix:
        raise InputError(f"Points are written as they were read; end {path.name} in {points.suffix}.")
    values = [[f"{v:.6f}" for v in row] for row in points.positions * _FLIP[points.space]]
    if points.suffix == ".csv":
        text = _csv_text(points.content, values)
    elif points.suffix == ".fcsv":
        text = _fcsv_text(points.content, values)
    else:
        text = _markups_text(points.content, values)
    with writing(path.name):
        path.write_text(text, encoding="utf-8", newline="\n")


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path} is no point list by its name; give {', '.join(SUFFIXES)}.")


def _csv_columns(rows: list[list[str]]) -> list[int]:
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if not {"x", "y", "z"} <= set(header):
        raise ValueError("its first line must name the columns x, y and z")
    return [header.index(axis) for axis in "xyz"]


def _csv_text(rows: list[list[str]], values: list[list[str]]) -> str:
    columns = _csv_columns(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row, position in zip((row for row in rows[1:] if row), values, strict=True):
        for column, value in zip(columns, position, strict=True):
            row = [*row[:column], value, *row[column + 1 :]]
        writer.writerow(row)
    return out.getvalue()


def _fcsv_space(lines: list[str]) -> str:
    for line in lines:
        if line.startswith("#") and "CoordinateSystem" in line:
            name = line.split("=")[1].strip().lower()
            if name not in _FCSV_SPACES:
                raise ValueError(f"its CoordinateSystem is {name}, not LPS or RAS")
            return _FCSV_SPACES[name]
    return "ras"


def _fcsv_rows(lines: list[str]) -> list[int]:
    for line in lines:
        named = line.startswith("#") and "columns" in line
        if named and not line.split("=")[1].strip().startswith("id,x,y,z"):
            raise ValueError(f"its columns are not {_FCSV_COLUMNS}")
    return [n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")]


def _fcsv_text(lines: list[str], values: list[list[str]]) -> str:
    lines = list(lines)
    for n, position in zip(_fcsv_rows(lines), values, strict=True):
        cells = lines[n].split(",")
        lines[n] = ",".join([cells[0], *position, *cells[4:]])
    return "\n".join(lines) + "\n"


def _markups_space(content: dict[str, Any]) -> str:
    """The space of all markups in the file; they share one in every file Slicer writes."""
    spaces = {str(markup.get("coordinateSystem", "LPS")).lower() for markup in content["markups"]}
    if len(spaces) != 1 or not spaces <= _FLIP.keys():
        raise ValueError(f"its coordinateSystem is {', '.join(sorted(spaces)) or 'missing'}, not LPS or RAS")
    return spaces.pop()


def _control_points(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The control points with a position (Slicer also keeps points that are still to be placed)."""
    for markup in content["markups"]:
        if markup.get("type", "Fiducial") not in _MARKUPS:
            raise ValueError(f"it holds a {markup['type']}, not one of {', '.join(_MARKUPS)}")
    return [
        point
        for markup in content["markups"]
        for point in markup.get("controlPoints", [])
        if point.get("position") and point.get("positionStatus", "defined") == "defined"
    ]


def _markups_text(content: dict[str, Any], values: list[list[str]]) -> str:
    content = json.loads(json.dumps(content))
    for point, position in zip(_control_points(content), values, strict=True):
        point["position"] = [float(v) for v in position]
    return json.dumps(content, indent=4) + "\n"

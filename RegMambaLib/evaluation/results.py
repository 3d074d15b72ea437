"""Results of many pairs as rows (CSV), as a summary (JSON) and as text (Markdown), and their comparison."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from .report import LABEL_MEASURES
from .statistics import holm, spread, wilcoxon

ALL = "all"
"""In the column label: the row of a whole pair, with the mean over its structures."""
STRUCTURE_MEASURES = {"dice_before": "Dice before", **LABEL_MEASURES}
PAIR_MEASURES = {
    "tre_before_mm": "landmark error before, mm",
    "tre_mm": "landmark error, mm",
    "folding_percent": "folding, %",
    "nondiffeomorphic_percent": "non-diffeomorphic volume, %",
    "sd_log_jacobian": "SDlogJ",
    "smallest_jacobian": "smallest Jacobian",
    "inverse_error_mm": "inverse error, mm",
    "inverse_error_largest_mm": "largest inverse error, mm",
    "seconds": "seconds",
    "memory_mb": "memory, MiB",
}
MEASURES = {**STRUCTURE_MEASURES, **PAIR_MEASURES}
_TEXT = ("method", "pair", "label", "name")
COLUMNS = (*_TEXT, *MEASURES)
COMPARISON_COLUMNS = (
    *("measure", "label", "name", "count"),
    *("first_mean", "second_mean", "median_difference", "p", "p_holm", "effect"),
)
_START = ("dice_before", "tre_before_mm")  # do not depend on the method

Row = dict[str, Any]


def rows_of(result: Mapping[str, Any], names: Mapping[int, str]) -> list[Row]:
    """The rows of one pair: first its own, then one for each structure."""
    head = {"method": result["method"], "pair": result["pair"]}
    before, after = result.get("before", {}), result.get("after", {})
    whole = {name: after.get(name) for name in LABEL_MEASURES} | {"dice_before": before.get("dice")}
    whole |= {name: result.get(name) for name in PAIR_MEASURES}
    whole |= {"seconds": result.get("seconds", {}).get("total"), "memory_mb": result.get("peak_memory_mb")}
    rows = [{**head, "label": ALL, "name": "", **whole}]
    for label, measures in after.get("per_label", {}).items():
        start = before["per_label"][label]["dice"]
        rows.append({**head, "label": label, "name": names.get(int(label), ""), "dice_before": start, **measures})
    return rows


def to_csv(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as CSV; what is not there is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue()


def read_results(path: str | Path) -> list[Row]:
    """Rows of a results.csv.

    Raises:
        InputError: missing, another kind of file, or of several methods.
    """
    path = Path(path)
    wrong = f"{path} holds no results; give a results.csv that `regmamba evaluate --pairs` wrote."
    found: list[Row] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                found.append({name: row[name] if name in _TEXT else _number(row[name]) for name in COLUMNS})
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(wrong) from error
    methods = sorted({row["method"] for row in found})
    if not methods:
        raise InputError(wrong)
    if len(methods) > 1:
        raise InputError(f"{path} holds several methods ({', '.join(methods)}); its own results.md compares them.")
    return found


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Spread over the pairs, for each method: of the whole pairs ("overall") and of each structure.

    `{method: {"pairs": n, "overall": {measure: spread}, "structures": {label: {"name", measure: spread}}}}`; a
    spread is {"count", "mean", "sd", "median"}. The overall Dice is the mean over pairs of each pair's mean over
    structures.
    """
    summary: dict[str, Any] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        whole = [row for row in own if row["label"] == ALL]
        structures = {
            label: {"name": of[0]["name"], **_spreads(of, STRUCTURE_MEASURES)} for label, of in _by_label(own).items()
        }
        summary[method] = {"pairs": len(whole), "overall": _spreads(whole, MEASURES), "structures": structures}
    return summary


def compare_methods(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """Wilcoxon's signed-rank test between the rows of two methods, over the pairs both have.

    For each measure a row of the whole pairs (label `ALL`) and one of each structure that both have. Overlap and
    distances of a whole pair are means over the structures that were measured with both methods, so that two lists
    of labels do not pass for two methods. `p_holm` is corrected for the number of structures; the whole pairs are
    one test and stay as they are.

    Raises:
        InputError: no pair is in both.
    """
    sides = _by_pair(first), _by_pair(second)
    labels = [label for label in sides[0] if label in sides[1]]
    if not any(pair in sides[1][label] for label in labels for pair in sides[0][label]):
        raise InputError("The two results share no pair; evaluate both methods on one list of pairs, with its names.")
    names = {str(row["label"]): row["name"] for row in first}
    out: list[Row] = []
    for measure in MEASURES:
        if measure in _START:
            continue
        values = {label: _shared(measure, sides[0][label], sides[1][label]) for label in labels}
        if measure in LABEL_MEASURES:
            values[ALL] = _means([found for label, found in values.items() if label != ALL])
        found = [_compared(measure, label, names[label], of) for label, of in values.items() if of]
        structures = [row for row in found if row["label"] != ALL]
        for row, p in zip(structures, holm([row["p"] for row in structures]), strict=True):
            row["p_holm"] = p
        out += found
    return out


def _shared(measure: str, first: Mapping[str, Row], second: Mapping[str, Row]) -> dict[str, tuple[float, float]]:
    """What both have of a measure, by pair."""
    pairs = [pair for pair in first if pair in second]
    values = {pair: (first[pair].get(measure), second[pair].get(measure)) for pair in pairs}
    return {pair: (a, b) for pair, (a, b) in values.items() if a is not None and b is not None}


def _means(structures: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Means over structures, by pair."""
    values: dict[str, list[tuple[float, float]]] = {}
    for of in structures:
        for pair, both in of.items():
            values.setdefault(pair, []).append(both)
    return {pair: (spread([a for a, _ in of]).mean, spread([b for _, b in of]).mean) for pair, of in values.items()}


def _compared(measure: str, label: str, name: str, values: Mapping[str, tuple[float, float]]) -> Row:
    a, b = [first for first, _ in values.values()], [second for _, second in values.values()]
    test = wilcoxon(a, b)
    return {
        "measure": measure,
        "label": label,
        "name": name,
        "count": test.count,
        "first_mean": spread(a).mean,
        "second_mean": spread(b).mean,
        "median_difference": test.difference,
        "p": test.p,
        "p_holm": test.p,
        "effect": test.effect,
    }


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["label"]), []).append(row)
    return groups


def _by_pair(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """For each label the rows of pairs, by their names."""
    return {label: {row["pair"]: row for row in of} for label, of in _groups(rows).items()}


def _by_label(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each structure, by ascending label."""
    groups = _groups(rows)
    groups.pop(ALL, None)
    return dict(sorted(groups.items(), key=lambda item: int(item[0])))


def _spreads(rows: Sequence[Row], measures: Iterable[str]) -> dict[str, dict[str, float]]:
    found = {name: spread([row.get(name) for row in rows]) for name in measures}
    return {name: asdict(value) for name, value in found.items() if value.count}


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _number(text: str) -> float | None:
    return float(text) if text else None

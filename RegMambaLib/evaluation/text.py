"""Results and comparisons as tables for people: Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .page import number
from .results import ALL, MEASURES, STRUCTURE_MEASURES, Row

OVERALL_HEADER = ("measure", "method", "pairs", "mean", "sd", "median")
COMPARISON_HEADER = ("measure", "structure", "pairs", "first", "second", "median difference", "p", "p (Holm)", "effect")
FEW = 6
"""Pairs below which a two-sided signed-rank test cannot reach .05."""


def overall_rows(summary: Mapping[str, Any]) -> list[list[Any]]:
    """The spread of every measure over whole pairs, methods below one another."""
    rows = []
    for measure, title in MEASURES.items():
        for method, of in summary.items():
            if measure in of["overall"]:
                spread = of["overall"][measure]
                figures = [figure(spread[name], measure) for name in ("mean", "sd", "median")]
                rows.append([title, method, spread["count"], *figures])
    return rows


def structure_table(of: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of one method's structures: mean, sd and median of every measure."""
    there = [name for name in STRUCTURE_MEASURES if any(name in row for row in of["structures"].values())]
    header = ["structure", "pairs", *(f"{STRUCTURE_MEASURES[name]}: mean ± sd (median)" for name in there)]
    rows = []
    for label, row in of["structures"].items():
        count = max((row[name]["count"] for name in there if name in row), default=0)
        title = f"{row['name']} ({label})" if row["name"] else label
        rows.append([title, count, *(_spread(row.get(name), name) for name in there)])
    return header, rows


def comparison_rows(comparison: Iterable[Row], *, whole: bool) -> list[list[Any]]:
    """The rows of a comparison: of whole pairs, or of structures."""
    return [
        [
            MEASURES[row["measure"]],
            "all" if row["label"] == ALL else f"{row['name']} ({row['label']})" if row["name"] else row["label"],
            row["count"],
            figure(row["first_mean"], row["measure"]),
            figure(row["second_mean"], row["measure"]),
            figure(row["median_difference"], row["measure"]),
            probability(row["p"]),
            "" if whole else probability(row["p_holm"]),
            number(row["effect"], 2),
        ]
        for row in comparison
        if (row["label"] == ALL) == whole
    ]


def comparison_note(first: str, second: str, comparison: Sequence[Row]) -> str:
    """What the figures of a comparison are."""
    most = max((row["count"] for row in comparison), default=0)
    few = f" With fewer than {FEW} pairs no p below .05 is possible; here there are {most}." if most < FEW else ""
    return (
        f"First: {first}. Second: {second}. Two-sided Wilcoxon signed-rank test over pairs; p (Holm) is corrected for "
        "the number of structures; effect is the rank-biserial correlation, positive where the first is larger." + few
    )


def figure(value: Any, measure: str) -> str:
    """A value of a measure, with the digits that it deserves."""
    if measure in ("seconds", "memory_mb"):
        return number(value, 1)
    if measure.endswith("percent") and value is not None:
        return f"{value:.3g}"
    return number(value, 2 if measure.endswith("_mm") else 3)


def probability(p: float) -> str:
    """A p value for people."""
    return "< 0.001" if p < 0.001 else number(p)


def markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column text, the others figures."""
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def results_text(
    summary: Mapping[str, Any], failed: Mapping[str, str], comparisons: Mapping[tuple[str, str], Sequence[Row]]
) -> str:
    """results.md: overall, comparisons of methods, structures, and what failed."""
    parts = ["# Results\n", markdown(OVERALL_HEADER, overall_rows(summary))]
    for (first, second), comparison in comparisons.items():
        parts += [f"## {first} against {second}\n", comparison_text(first, second, comparison)]
    for method, of in summary.items():
        if of["structures"]:
            parts += [f"## Structures: {method}\n", markdown(*structure_table(of))]
    if failed:
        parts += ["## Failed\n", "".join(f"- {name}: {reason}\n" for name, reason in failed.items())]
    return "\n".join(parts)


def comparison_text(first: str, second: str, comparison: Sequence[Row]) -> str:
    """A comparison as Markdown: whole pairs, then structures."""
    parts = [comparison_note(first, second, comparison) + "\n"]
    for whole in (True, False):
        rows = comparison_rows(comparison, whole=whole)
        if rows:
            parts.append(markdown(COMPARISON_HEADER, rows))
    return "\n".join(parts)


def _spread(spread: Mapping[str, float] | None, measure: str) -> str:
    if spread is None:
        return number(None)
    mean, sd, median = (figure(spread[name], measure) for name in ("mean", "sd", "median"))
    return f"{mean} ± {sd} ({median})"


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

"""The report of an evaluation as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cohort import OVERLAY, PAGE
from .encode import data_uri
from .page import element, escape, facts, figure, folded, number, page, section, table, tiles
from .results import ALL, MEASURES, Row
from .text import (
    COMPARISON_HEADER,
    OVERALL_HEADER,
    comparison_note,
    comparison_rows,
    overall_rows,
    structure_table,
)
from .text import figure as digits

OVERLAYS = 12
"""Pairs whose slices are shown: those with the lowest Dice first."""
_PAIR_COLUMNS = ("dice_before", "dice", "hd95_mm", "tre_mm", "folding_percent", "sd_log_jacobian", "seconds")


def evaluation_page(
    title: str,
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    comparisons: Mapping[tuple[str, str], Sequence[Row]],
    charts: Mapping[str, bytes],
    failed: Mapping[str, str],
    folders: Mapping[tuple[str, str], str],
    place: Path,
    about: Mapping[str, Mapping[str, Any]],
) -> str:
    """HTML of an evaluation.

    Args:
        charts: PNG box plots by measure.
        folders: of (method, pair), below `place`, where each pair's own report and pictures are.
        about: tables of settings, versions and the like, by heading.
    """
    whole = [row for row in rows if row["label"] == ALL]
    lost = "".join(element("li", f"{escape(name)}: {escape(reason)}") for name, reason in failed.items())
    body = [
        element("h1", escape(title)),
        tiles(_figures(summary, failed)),
        section("Failed", element("ul", lost, cls="warnings") if lost else ""),
        section("Overall", table(OVERALL_HEADER, overall_rows(summary), caption="over pairs")),
        *(_comparison(first, second, rows) for (first, second), rows in comparisons.items()),
        section("By structure", _gallery([_chart(name, chart) for name, chart in charts.items()])),
        *(
            folded(f"Figures by structure: {method}", table(*structure_table(of)))
            for method, of in summary.items()
            if of["structures"]
        ),
        section("Pairs", _pairs(whole, folders, place)),
        section("Slices", _slices(whole, folders, place)),
        *(folded(heading, facts(values)) for heading, values in about.items() if values),
    ]
    return page(title, "\n".join(part for part in body if part))


def _figures(summary: Mapping[str, Any], failed: Mapping[str, str]) -> dict[str, str]:
    figures = {"pairs": " + ".join(str(of["pairs"]) for of in summary.values()) or "0"}
    for method, of in summary.items():
        if "dice" in of["overall"]:
            figures[f"Dice, {method}"] = number(of["overall"]["dice"]["mean"])
    if failed:
        figures["failed"] = str(len(failed))
    return figures


def _gallery(figures: Sequence[str]) -> str:
    return element("div", "".join(figures), cls="gallery") if figures else ""


def _chart(measure: str, chart: bytes) -> str:
    return figure(data_uri(chart), f"{MEASURES[measure]}: a box over pairs for each structure and method")


def _comparison(first: str, second: str, rows: Sequence[Row]) -> str:
    note = element("p", escape(comparison_note(first, second, rows)), cls="quiet")
    whole = table(COMPARISON_HEADER, comparison_rows(rows, whole=True))
    each = comparison_rows(rows, whole=False)
    structures = folded("By structure", table(COMPARISON_HEADER, each)) if each else ""
    return section(f"{first} against {second}", note + whole + structures)


def _pairs(whole: Sequence[Row], folders: Mapping[tuple[str, str], str], place: Path) -> str:
    there = [name for name in _PAIR_COLUMNS if any(row.get(name) is not None for row in whole)]
    head = "".join(element("th", escape(text)) for text in ("pair", "method", *(MEASURES[name] for name in there)))
    lines = []
    for row in whole:
        target = f"{folders[row['method'], row['pair']]}/{PAGE}"
        name = escape(row["pair"])
        name = element("a", name, href=target) if (place / target).exists() else name
        cells = [name, escape(row["method"]), *(escape(digits(row.get(column), column)) for column in there)]
        lines.append(element("tr", "".join(element("td", cell) for cell in cells)))
    inner = element("table", element("thead", element("tr", head)) + element("tbody", "".join(lines)))
    return element("div", inner, cls="scroll", tabindex="0", role="region", aria_label="pairs")


def _slices(whole: Sequence[Row], folders: Mapping[tuple[str, str], str], place: Path) -> str:
    ranked = sorted(whole, key=lambda row: row["dice"] if row.get("dice") is not None else 2.0)
    pictures: list[str] = []
    for row in ranked:
        path = place / folders[row["method"], row["pair"]] / OVERLAY
        if path.exists() and len(pictures) < OVERLAYS:
            text = f"{row['pair']}, {row['method']}, Dice {number(row.get('dice'))}"
            pictures.append(figure(data_uri(path.read_bytes()), text))
    note = "Fixed, moving before, moved, and moved with the deformed grid; pairs with the lowest Dice first."
    return element("p", note, cls="quiet") + _gallery(pictures) if pictures else ""

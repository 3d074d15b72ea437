"""The report of one registration as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .names import structure_name
from .page import element, escape, facts, folded, number, page, section, table, tiles
from .report import LABEL_MEASURES
from .viewer import Shown, viewer

SHOWN_BEFORE = ("dice", "hd95_mm")


def registration_page(report: Mapping[str, Any], shown: Shown, names: Mapping[int, str] | None = None) -> str:
    """HTML of a report as `regmamba register` writes it, with pictures.

    Args:
        report: "inputs" and any of "folding_percent", "sd_log_jacobian", "before", "after" (see `label_report`),
            "seconds", "peak_memory_mb", "details", "settings", "versions".
        names: of the labels.
    """
    inputs = report.get("inputs", {})
    title = f"{_file(inputs.get('moving', 'moving'))} to {_file(inputs.get('fixed', 'fixed'))}"
    remarks = "".join(element("li", escape(text)) for text in warnings(report))
    body = [
        element("h1", escape(title)),
        element("p", "Registration of the moving image, the first, to the fixed image.", cls="quiet"),
        tiles(_figures(report)),
        element("ul", remarks, cls="warnings", role="note", aria_label="Warnings") if remarks else "",
        section("Images", viewer(shown)),
        section("Structures", _structures(report, names or {})),
        section("Time", _seconds(report.get("seconds", {}))),
        folded("Settings", facts(report.get("settings", {}))),
        folded("Details of the stages", facts({k: _plain(v) for k, v in report.get("details", {}).items()})),
        folded("Files and versions", facts({**inputs, **report.get("versions", {})})),
    ]
    return page(title, "\n".join(part for part in body if part))


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the result, a sentence each."""
    details = report.get("details", {})
    found = []
    if details.get("network_skipped"):
        found.append(f"The network was not used: {details['network_skipped']}.")
    if report.get("folding_percent"):
        found.append(f"The deformation folds at {report['folding_percent']:.3g} % of the voxels.")
    if report.get("nondiffeomorphic_percent"):
        found.append(f"{report['nondiffeomorphic_percent']:.3g} % of the volume is folded over.")
    before, after = (report.get(time, {}).get("dice") for time in ("before", "after"))
    if before is not None and after is not None and after < before:
        found.append("The labels agree less after the registration than before it.")
    if (details.get("inverse_error_mm") or 0) > 0.5:
        found.append(f"Transform and inverse differ by up to {details['inverse_error_mm']:.2g} mm.")
    return found


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    figures = {}
    if "after" in report:
        before, after = report["before"], report["after"]
        figures["Dice"] = f"{number(before.get('dice'))} → {number(after.get('dice'))}"
        if "hd95_mm" in after:
            figures["HD95"] = f"{number(after['hd95_mm'], 2)} mm"
    if report.get("tre_mm") is not None:
        figures["Landmark error"] = f"{number(report.get('tre_before_mm'), 2)} → {number(report['tre_mm'], 2)} mm"
    if "folding_percent" in report:
        figures["Folding"] = f"{report['folding_percent']:.3g} %"
    if "sd_log_jacobian" in report:
        figures["SDlogJ"] = number(report["sd_log_jacobian"])
    if report.get("seconds", {}).get("total"):
        figures["Time"] = f"{report['seconds']['total']:.1f} s"
    if report.get("peak_memory_mb"):
        figures["Memory"] = f"{report['peak_memory_mb'] / 1024:.1f} GiB"
    return figures


def _structures(report: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """Every measure after, and those of `SHOWN_BEFORE` before, where they were taken."""
    if "after" not in report:
        return ""
    after = report["after"]
    columns = [(time, name) for name in LABEL_MEASURES for time in ("before", "after") if _taken(report, time, name)]
    header = [f"{LABEL_MEASURES[name]}{f' {time}' if ('before', name) in columns else ''}" for time, name in columns]

    def row(title: str, of: Any) -> list[Any]:
        return [title, *(of(report[time]).get(name) for time, name in columns)]

    rows = [
        row(structure_name(label, names), lambda at, label=label: at["per_label"].get(label, {}))
        for label in after["per_label"]
    ]
    rows.append(row(f"mean of {after['labels']}", lambda at: at))
    return table(["structure", *header], rows, last=1)


def _taken(report: Mapping[str, Any], time: str, name: str) -> bool:
    return name in report[time] and (time == "after" or name in SHOWN_BEFORE)


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    rows = [(stage, float(value)) for stage, value in seconds.items() if stage != "total"]
    total = float(seconds.get("total", sum(value for _, value in rows)))
    return table(("stage", "seconds"), [*rows, ("total", total)], last=1)


def _file(path: str) -> str:
    return str(path).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Progress and results in words."""

from __future__ import annotations

from typing import Any

STAGES = {
    "read": "Reading the volumes",
    "start": "Starting; the first time takes longest",
    "preprocess": "Preparing the volumes",
    "linear": "Linear alignment",
    "network": "Network",
    "refine": "Refinement",
    "repair": "Removing folds",
    "write": "Writing the result",
    "evaluate": "Measuring the result",
}


def progress_text(stage: str, eta: float | None) -> str:
    """The stage, and about how long the whole run still takes."""
    name = STAGES.get(stage, stage)
    return f"{name}." if eta is None else f"{name}. {_about(eta)} left."


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"About {max(1, round(seconds))} s"
    return f"About {round(seconds / 60)} min"


def numbers_text(report: dict[str, Any]) -> str:
    """The numbers of a run in a few lines."""
    lines = []
    before, after = report.get("before") or {}, report.get("after") or {}
    if after.get("dice") is not None:
        start = f"{before['dice']:.2f} to " if before.get("dice") is not None else ""
        lines.append(f"Dice {start}{after['dice']:.2f}, mean of {after['labels']} labels.")
    if after.get("hd95_mm") is not None:
        start = f"{before['hd95_mm']:.1f} to " if before.get("hd95_mm") is not None else ""
        lines.append(f"HD95 {start}{after['hd95_mm']:.1f} mm.")
    if report.get("folding_percent") is not None:
        lines.append(f"Folding {report['folding_percent']:.3f} % of voxels.")
    seconds = report.get("seconds", {}).get("total")
    if seconds is not None:
        lines.append(f"{seconds:.0f} s.")
    return "\n".join(lines)

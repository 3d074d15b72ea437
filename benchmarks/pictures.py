"""Pictures of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from RegMambaLib.evaluation.figures import COLOURS

from .cases import CASES
from .measure import Row, reason
from .tables import by_method, over_pairs

WIDTH = 8.0
"""Inches."""


OURS = ("#16324f", "#3a7fc1", "#93bce3")
OTHERS = (*COLOURS[1:], "black")
MARKERS = "s^DvPX<>"


def _styles(methods: Sequence[str]) -> dict[str, dict]:
    """Our variants are filled circles in blue, others open marks of their own shape and colour."""
    ours = [method for method in methods if method.startswith("RegMamba")]
    others = [method for method in methods if method not in ours]
    open_mark = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.5}
    return {
        **{m: {"color": OURS[n % len(OURS)], "marker": "o", "markersize": 8} for n, m in enumerate(ours)},
        **{
            m: {"color": OTHERS[n % len(OTHERS)], "marker": MARKERS[n % len(MARKERS)], **open_mark}
            for n, m in enumerate(others)
        },
    }


def time_against_accuracy(rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """Dice against process seconds, a panel for each case; dotted: where the pairs start."""
    from matplotlib.figure import Figure

    good = [row for row in rows if not reason(row)]
    names = [name for name in CASES if any(row["case"] == name and "process_seconds" in row for row in good)]
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    figure = Figure((WIDTH, 2.9 * lines + 0.9), dpi=120, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    styles = _styles(list(by_method((row for row in good if "process_seconds" in row), methods)))
    for panel in panels.ravel()[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels.ravel(), names, strict=False):
        mine = [row for row in good if row["case"] == name]
        for method, group in by_method(mine, methods).items():
            dice = over_pairs(group, "dice")
            if method not in styles:
                panel.axhline(dice, color="0.5", linewidth=1, linestyle=":")
                continue
            seconds = [row["process_seconds"] for row in group]
            panel.plot([min(seconds), max(seconds)], [dice, dice], color=styles[method]["color"], linewidth=1)
            panel.plot(median(seconds), dice, linestyle="none", **styles[method])
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_title(name, fontsize=10, loc="left")
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.tick_params(labelsize=8)
    for panel in panels[:, 0]:
        panel.set_ylabel("Dice")
    for panel in panels[-1]:
        panel.set_xlabel("seconds of the whole process")
    for method in styles:
        panels[0, 0].plot([], [], linestyle="none", label=method, **styles[method])
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path)


def structures(rows: Sequence[Row], case: str, methods: Sequence[str], path: Path) -> None:
    """Boxes of the Dice of single structures (mean over pairs and runs), a panel for each group of structures."""
    from matplotlib.figure import Figure

    groups = CASES[case].groups or {"all structures": lambda label: True}
    mine = {
        method: [row for row in group if "per_label" in row]
        for method, group in by_method([row for row in rows if row["case"] == case], methods).items()
    }
    mine = {method: group for method, group in mine.items() if group}
    figure = Figure((WIDTH, 0.32 * len(mine) + 1.1), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    places = list(range(len(mine), 0, -1))
    for panel, (name, holds) in zip(panels, groups.items(), strict=True):
        boxes = [list(_per_structure(group, holds).values()) for group in mine.values()]
        drawn = panel.boxplot(
            boxes,
            positions=places,
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.4"},
        )
        for box, method in zip(drawn["boxes"], mine, strict=True):
            box.set_facecolor("#9ec3e6" if method.startswith("RegMamba") else "0.88")
        panel.set_title(f"{name} ({len(boxes[0])})", fontsize=10, loc="left")
        panel.set_xlabel("Dice")
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(labelsize=8)
    panels[0].set_yticks(places, mine)
    figure.savefig(path)


def _per_structure(rows: Sequence[Row], holds) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for label, dice in row["per_label"].items():
            if holds(int(label)):
                values.setdefault(label, []).append(dice)
    return {label: sum(found) / len(found) for label, found in values.items()}


def scan_cost(rows: Sequence[Row], directions: int, path: Path) -> None:
    """Nanoseconds per token and direction against the length, forward and backward, with the floor of memory."""
    from matplotlib.figure import Figure

    good = [row for row in rows if not reason(row) and row["directions"] == directions]
    steps = list(dict.fromkeys(row["step"] for row in good))
    figure = Figure((WIDTH, 3.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, max(1, len(steps)), squeeze=False, sharey=True)[0]
    methods = list(dict.fromkeys(row["method"] for row in good))
    for panel, step in zip(panels, steps, strict=False):
        mine = sorted((row for row in good if row["step"] == step), key=lambda row: row["length"])
        for n, (method, group) in enumerate(by_method(mine, methods).items()):
            per_token = [1e9 * row["seconds"] / (row["length"] * directions) for row in group]
            lengths = [row["length"] for row in group]
            panel.plot(lengths, per_token, marker="o", markersize=4, color=COLOURS[n % len(COLOURS)], label=method)
        floor = {row["length"]: 1e9 * row["floor_seconds"] / (row["length"] * directions) for row in mine}
        panel.plot(list(floor), list(floor.values()), color="0.4", linestyle=":", label="floor set by memory")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(step, fontsize=10, loc="left")
        panel.set_xlabel("tokens")
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel("ns per token and direction")
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def growth(rows: Sequence[Row], path: Path) -> None:
    """Seconds and memory against the voxels of the working grid."""
    from matplotlib.figure import Figure

    good = sorted((row for row in rows if not reason(row)), key=lambda row: row["grid_voxels"])
    voxels = [row["grid_voxels"] / 1e6 for row in good]
    figure = Figure((WIDTH, 3.0), dpi=120, layout="constrained")
    for panel, column, title in zip(
        figure.subplots(1, 2), ("registration_seconds", "memory_gb"), ("seconds of registration", "GiB"), strict=True
    ):
        panel.plot(voxels, [row[column] for row in good], marker="o", color=COLOURS[0])
        panel.set_xlabel("million voxels of the working grid")
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    figure.savefig(path)

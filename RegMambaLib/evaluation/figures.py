"""Figures of an evaluation, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import MissingDependencyError
from .results import ALL, MEASURES, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3a7fc1", "#e0882b", "#4d9f5b", "#b5495b", "#7d66b3", "#8c7a5b", "#45a5a8", "#777777")
_HEIGHT = 0.17
"""Inches of a box."""


def check_matplotlib(message: str = 'Figures need matplotlib; pip install "regmamba[report]".') -> None:
    """Raise `MissingDependencyError` with the message unless matplotlib is installed: better before work than after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(message) from error


def box_plot(rows: Sequence[Row], measure: str) -> bytes | None:
    """A PNG: a box of `measure` over the pairs for each structure and method; None where nothing was measured.

    The box holds the middle half, the line is the median, whiskers reach to the last value within 1.5 times the
    box, dots lie beyond. Structures are in the order of the first method's medians.
    """
    import numpy as np
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["label"] != ALL and row.get(measure) is not None:
            title = row["name"] or str(row["label"])
            values.setdefault(title, {}).setdefault(row["method"], []).append(row[measure])
    if not values:
        return None
    order = sorted(values, key=lambda title: float(np.median(values[title].get(methods[0], [0.0]))))
    rows_each = len(methods) + 0.8
    chart = Figure((6.4, 1.2 + _HEIGHT * rows_each * len(order)), dpi=110, layout="constrained")
    axes = chart.subplots()
    for n, method in enumerate(methods):
        there = [(place, values[title][method]) for place, title in enumerate(order) if method in values[title]]
        if not there:
            continue
        colour = COLOURS[n % len(COLOURS)]
        # The first method on top of its group.
        places = [place * rows_each + len(methods) - 1 - n for place, _ in there]
        axes.boxplot(
            [found for _, found in there],
            positions=places,
            orientation="horizontal",
            widths=0.7,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.55, "edgecolor": colour},
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
        axes.plot([], [], color=colour, linewidth=6, alpha=0.55, label=method)
    axes.set_yticks([place * rows_each + (len(methods) - 1) / 2 for place in range(len(order))], order)
    axes.set_ylim(-1, (len(order) - 1) * rows_each + len(methods))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(MEASURES[measure])
    axes.grid(axis="x", alpha=0.3)
    if len(methods) > 1:
        axes.legend(loc="lower right", fontsize=8)
    return png(chart)


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()

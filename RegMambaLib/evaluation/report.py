"""The numbers of a report, as plain dicts for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .distance import surface_distances
from .folding import folding_percent, sd_log_jacobian
from .overlap import common_labels, dice


def label_report(
    fixed: np.ndarray,
    moved: np.ndarray,
    spacing: tuple[float, float, float],
    labels: Iterable[int] | None = None,
    *,
    distances: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """Dice, HD95 and mean surface distance (mm) of two label arrays (k, j, i), per label and averaged.

    Args:
        spacing: mm along (i, j, k).
        labels: which; by default those both arrays hold.
        distances: measure distances too; they take ten times as long as Dice.
        threads: CPU threads; by default all.

    Returns:
        `{"labels", "dice", "hd95_mm", "surface_mm": means, "per_label": {label: {"dice", "hd95_mm",
        "surface_mm"}}}`. What does not exist (the distance of a label that one array lacks) is None and not
        part of the mean.
    """
    wanted = list(labels) if labels is not None else common_labels(fixed, moved)
    columns = {"dice": dice(fixed, moved, wanted)}
    if distances:
        found = surface_distances(fixed, moved, spacing, wanted, threads)
        columns["hd95_mm"] = {label: distance.hd95 for label, distance in found.items()}
        columns["surface_mm"] = {label: distance.mean for label, distance in found.items()}
    means = {name: _mean(column.values()) for name, column in columns.items()}
    per_label = {str(label): {name: _number(column[label]) for name, column in columns.items()} for label in wanted}
    return {"labels": len(wanted), **means, "per_label": per_label}


def folding_report(jacobian: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Folding (percent of voxels), SDlogJ and the smallest determinant; within a mask if given."""
    return {
        "folding_percent": folding_percent(jacobian, mask),
        "sd_log_jacobian": sd_log_jacobian(jacobian, mask),
        "smallest_jacobian": float((jacobian if mask is None else jacobian[mask]).min()),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float | None:
    there = [v for v in values if math.isfinite(v)]
    return sum(there) / len(there) if there else None

"""The numbers of a report, as plain dicts for JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..spatial.jacobian import jacobian_determinant
from .distance import surface_distances
from .folding import folding_percent, nondiffeomorphic_percent, sd_log_jacobian
from .overlap import common_labels, dice, volume_similarity

if TYPE_CHECKING:
    import SimpleITK as sitk

LABEL_MEASURES = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "surface_mm": "surface distance, mm",
    "volume_similarity": "volume similarity",
}
"""What is measured of every label, with a heading for people."""


def label_report(
    fixed: np.ndarray,
    moved: np.ndarray,
    spacing: tuple[float, float, float],
    labels: Iterable[int] | None = None,
    *,
    distances: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """Dice, HD95, mean surface distance (mm) and volume similarity of two label arrays (k, j, i), per label, averaged.

    Args:
        spacing: mm along (i, j, k).
        labels: which; by default those both arrays hold.
        distances: measure distances too; they take ten times as long as Dice.
        threads: CPU threads; by default all.

    Returns:
        `{"labels": how many, "dice": mean, ..., "per_label": {label: {"dice", ...}}}` with the names of
        `LABEL_MEASURES`. What does not exist (the distance of a label that one array lacks) is None and not part
        of the mean.
    """
    wanted = list(labels) if labels is not None else common_labels(fixed, moved)
    columns = {"dice": dice(fixed, moved, wanted)}
    if distances:
        found = surface_distances(fixed, moved, spacing, wanted, threads)
        columns["hd95_mm"] = {label: distance.hd95 for label, distance in found.items()}
        columns["surface_mm"] = {label: distance.mean for label, distance in found.items()}
    columns["volume_similarity"] = volume_similarity(fixed, moved, wanted)
    means = {name: _mean(column.values()) for name, column in columns.items()}
    per_label = {str(label): {name: _number(column[label]) for name, column in columns.items()} for label in wanted}
    return {"labels": len(wanted), **means, "per_label": per_label}


def compare_labels(
    fixed: sitk.Image,
    moving: sitk.Image,
    moved: sitk.Image,
    *,
    only: Collection[int] | None = None,
    distances: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """`label_report` of the fixed labels and of the moving ones pulled onto their grid.

    It is over the labels of both maps as given: one that moving makes vanish counts as lost, not as absent.

    Args:
        only: labels that count, of those both maps hold; by default all.

    Raises:
        InputError: the maps share no label that counts.
    """
    import SimpleITK as sitk

    given = sitk.GetArrayViewFromImage(fixed)
    labels = common_labels(given, sitk.GetArrayViewFromImage(moving))
    if not labels:
        raise InputError("The two label maps share no label; are they of the same kind?")
    if only is not None:
        labels = [label for label in labels if label in only]
        if not labels:
            raise InputError("The two label maps share no label that has a name; give the names that belong to them.")
    arrived = sitk.GetArrayViewFromImage(moved)
    return label_report(given, arrived, fixed.GetSpacing(), labels, distances=distances, threads=threads)


def folding_report(jacobian: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Folding (percent of voxels), SDlogJ and the smallest determinant; within a mask if given."""
    return {
        "folding_percent": folding_percent(jacobian, mask),
        "sd_log_jacobian": sd_log_jacobian(jacobian, mask),
        "smallest_jacobian": float((jacobian if mask is None else jacobian[mask]).min()),
    }


def regularity_report(displacement: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """`folding_report` and the non-diffeomorphic volume (percent) of a displacement, (3, k, j, i) voxels."""
    return {
        **folding_report(jacobian_determinant(displacement), mask),
        "nondiffeomorphic_percent": nondiffeomorphic_percent(displacement, mask),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float | None:
    there = [v for v in values if math.isfinite(v)]
    return sum(there) / len(there) if there else None

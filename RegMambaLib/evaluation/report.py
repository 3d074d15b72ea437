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

    from ..registration.result import Registration

NO_OVERLAP = "There is no Dice: the fixed and the moving labels have no label in common."

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


def registration_report(
    result: Registration,
    fixed_labels: sitk.Image | None = None,
    moving_labels: sitk.Image | None = None,
    moved_labels: sitk.Image | None = None,
    *,
    initial: sitk.Transform | None = None,
    distances_before: bool = False,
    threads: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """What is said of every registration: its folding and, with all three label maps, how they overlap.

    Args:
        initial: where the moving labels lay before the registration; by default where they are.
        distances_before: measure distances before the registration too.
        threads: CPU threads; 0 takes all.

    Returns:
        `folding_report` on the working grid, with "before" and "after" as of `compare_labels`; and
        remarks for the user, such as why there is no overlap.
    """
    numbers: dict[str, Any] = folding_report(result.jacobian)
    if fixed_labels is None or moving_labels is None or moved_labels is None:
        return numbers, []
    unmoved = result.fixed_grid.resample(moving_labels, initial, labels=True)
    try:
        before = compare_labels(
            fixed_labels, moving_labels, unmoved, distances=distances_before, threads=threads or None
        )
    except InputError:  # the registration is as good without a measure
        return numbers, [NO_OVERLAP]
    after = compare_labels(fixed_labels, moving_labels, moved_labels, threads=threads or None)
    return {**numbers, "before": before, "after": after}, []


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

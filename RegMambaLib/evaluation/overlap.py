"""Overlap of two label maps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_DENSE = 1 << 20
"""Largest label that is counted in a table; label maps with larger ones are numbered anew first."""


def label_values(labels: np.ndarray) -> list[int]:
    """The labels that occur in an unsigned integer array, without 0, ascending."""
    if int(labels.max()) > _DENSE:
        return [int(v) for v in np.unique(labels) if v]
    return [int(v) for v in np.flatnonzero(np.bincount(labels.ravel())) if v]


def common_labels(first: np.ndarray, second: np.ndarray) -> list[int]:
    """The labels both arrays hold, without 0, ascending."""
    return sorted(set(label_values(first)) & set(label_values(second)))


def dice(first: np.ndarray, second: np.ndarray, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice coefficient of each label, 2 |A and B| / (|A| + |B|).

    Args:
        first, second: unsigned integer arrays of one shape.
        labels: which; by default those both arrays hold. A label that neither holds is NaN.
    """
    if first.shape != second.shape:
        raise ValueError(f"Label arrays of shape {first.shape} and {second.shape} cannot be compared.")
    wanted = list(labels) if labels is not None else common_labels(first, second)
    in_first, in_second, in_both = _counts(first), _counts(second), _counts(first[first == second])
    sums = {label: in_first.get(label, 0) + in_second.get(label, 0) for label in wanted}
    return {label: 2 * in_both.get(label, 0) / total if total else float("nan") for label, total in sums.items()}


def volume_similarity(first: np.ndarray, second: np.ndarray, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Volume similarity of each label, 1 - ||A| - |B|| / (|A| + |B|): 1 for equal volumes, wherever they lie.

    As Taha and Hanbury, BMC Medical Imaging 2015.

    Args:
        first, second: unsigned integer arrays on grids of one voxel volume.
        labels: which; by default those both arrays hold. A label that neither holds is NaN.
    """
    wanted = list(labels) if labels is not None else common_labels(first, second)
    counts = _counts(first), _counts(second)
    found = {}
    for label in wanted:
        a, b = (count.get(label, 0) for count in counts)
        found[label] = 1 - abs(a - b) / (a + b) if a + b else float("nan")
    return found


def _counts(labels: np.ndarray) -> dict[int, int]:
    if labels.size == 0:
        return {}
    if int(labels.max()) > _DENSE:
        values, counts = np.unique(labels, return_counts=True)
    else:
        counts = np.bincount(labels.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    return dict(zip(values.tolist(), counts.tolist(), strict=True))

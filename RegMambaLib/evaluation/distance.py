"""Distance between the surfaces of two label maps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .overlap import common_labels


class SurfaceDistance(NamedTuple):
    """In mm: the 95th percentile (the larger of both directions) and the mean over both."""

    hd95: float
    mean: float


def surface_distances(
    first: np.ndarray,
    second: np.ndarray,
    spacing: tuple[float, float, float],
    labels: Iterable[int] | None = None,
    threads: int | None = None,
) -> dict[int, SurfaceDistance]:
    """Surface distances of each label.

    A surface is the voxels of a label that touch another label or the border of the array by a face;
    distances are between voxel centres, exact.

    Args:
        first, second: unsigned integer arrays (k, j, i) of one shape.
        spacing: mm along (i, j, k), as a grid states it.
        labels: which; by default those both arrays hold. A label that one of them lacks gives NaN.
        threads: CPU threads; by default all.
    """
    from scipy.spatial import cKDTree

    wanted = list(labels) if labels is not None else common_labels(first, second)
    surfaces = _surfaces(first, spacing), _surfaces(second, spacing)

    def measure(label: int) -> SurfaceDistance:
        if any(label not in surface for surface in surfaces):
            return SurfaceDistance(float("nan"), float("nan"))
        points = [surface[label] for surface in surfaces]
        # Neither balanced nor sorted trees: each is asked once, and building them is half of the work.
        trees = [cKDTree(p, balanced_tree=False) for p in points]
        there, back = trees[1].query(points[0])[0], trees[0].query(points[1])[0]
        return SurfaceDistance(
            float(max(np.percentile(there, 95), np.percentile(back, 95))),
            float(np.concatenate([there, back]).mean()),
        )

    # The largest surfaces first, so that no thread is left with one at the end.
    order = sorted(wanted, key=lambda label: -len(surfaces[0].get(label, ())))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = dict(zip(order, pool.map(measure, order), strict=True))
    return {label: found[label] for label in wanted}


def _surfaces(labels: np.ndarray, spacing: tuple[float, float, float]) -> dict[int, np.ndarray]:
    """(n, 3) mm of the surface voxels of every label."""
    edge = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        values, marks = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        change = values[1:] != values[:-1]
        marks[1:] |= change
        marks[:-1] |= change
        marks[0] = marks[-1] = True
    edge &= labels > 0
    flat = np.flatnonzero(edge)
    found = labels.ravel()[flat]
    order = np.argsort(found, kind="stable")
    points = np.stack(np.unravel_index(flat[order], labels.shape), axis=1) * np.asarray(spacing[::-1], float)
    values, starts = np.unique(found[order], return_index=True)
    return dict(zip(values.tolist(), np.split(points, starts)[1:], strict=True))

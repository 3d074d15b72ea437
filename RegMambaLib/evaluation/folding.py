"""How regular a deformation is, from its Jacobian determinants and from the cells of its grid."""

from __future__ import annotations

from itertools import product

import numpy as np

FLOOR, CEILING = 1e-9, 1e9
"""Determinants are clipped to these before their logarithm is taken, as Learn2Reg does."""
# Planes of cells that are measured at a time, so that memory does not grow with the volume.
_SLAB = 8


def folding_percent(jacobian: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Share of voxels with a determinant <= 0, in percent; within a mask if given."""
    values = jacobian if mask is None else jacobian[mask]
    return float(100 * np.count_nonzero(values <= 0) / max(values.size, 1))


def sd_log_jacobian(jacobian: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Standard deviation of the logarithm of the determinant; within a mask if given. 0 is rigid.

    The measure of Learn2Reg (Hering et al., IEEE TMI 2023), by its definition. Its published script adds 3 to
    every determinant before the logarithm; figures made by that script are smaller and not comparable.
    """
    values = jacobian if mask is None else jacobian[mask]
    if values.size == 0:
        return float("nan")
    return float(np.log(np.clip(values, np.float32(FLOOR), np.float32(CEILING))).std(dtype=np.float64))


def nondiffeomorphic_percent(displacement: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Non-diffeomorphic volume, in percent of the volume: how much is folded over, not only where.

    Liu et al., "On finite difference Jacobian computation in deformable image registration", IJCV 2024: a cell
    between eight voxels is made of five tetrahedra, in two ways. The volume of those that the transform turns
    inside out is summed, and the two ways averaged. 0 means that the transform, linear in every tetrahedron, is
    one to one.

    Args:
        displacement: (3, k, j, i) voxels.
        mask: (k, j, i) bool; a cell counts if all its eight voxels are set.
    """
    cells = np.array(displacement.shape[1:]) - 1
    folded, count = 0.0, 0
    for first in range(0, int(cells[0]), _SLAB):
        planes = slice(first, first + _SLAB + 1)
        volume = _folded_volume(displacement[:, planes])
        inside = np.ones(volume.shape, bool) if mask is None else _whole_cells(mask[planes])
        folded += float(volume[inside].sum(dtype=np.float64))
        count += int(inside.sum())
    return 100 * folded / count if count else float("nan")


def _folded_volume(u: np.ndarray) -> np.ndarray:
    """(k, j, i) of cells: the volume that is turned inside out, in voxels, the mean of both ways to divide a cell."""
    corner = {
        at: u[:, at[0] : u.shape[1] - 1 + at[0], at[1] : u.shape[2] - 1 + at[1], at[2] : u.shape[3] - 1 + at[2]]
        for at in product((0, 1), repeat=3)
    }

    def edge(start: tuple[int, ...], end: tuple[int, ...]) -> np.ndarray:
        """From one corner to another, as the transform leaves it."""
        change = np.subtract(end, start).astype(u.dtype)
        return corner[end] - corner[start] + change[:, None, None, None]

    folded = np.zeros(corner[0, 0, 0].shape[1:], np.float64)
    for at in corner:
        # The corner with its three neighbours; the sign keeps an unfolded one positive.
        around = [(*at[:axis], 1 - at[axis], *at[axis + 1 :]) for axis in range(3)]
        sign = 1 - 2 * (sum(at) % 2)
        folded -= np.minimum(sign * _triple(*(edge(at, end) for end in around)), 0) / 6
    for odd in (0, 1):
        # The tetrahedron left over in the middle, between every other corner.
        start, *ends = [at for at in corner if sum(at) % 2 == odd]
        sign = np.sign(np.linalg.det(np.subtract(ends, start)))
        folded -= np.minimum(sign * _triple(*(edge(start, end) for end in ends)), 0) / 6
    return folded / 2


def _triple(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The determinant of three vectors (3, ...)."""
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def _whole_cells(mask: np.ndarray) -> np.ndarray:
    """Cells whose eight voxels are all set."""
    pairs = mask.astype(bool)
    for axis in range(3):
        pairs = np.take(pairs, range(1, pairs.shape[axis]), axis) & np.take(pairs, range(pairs.shape[axis] - 1), axis)
    return pairs

"""Remove folds locally: smooth the displacement only around voxels whose Jacobian is too small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from ..spatial import fields
from ..spatial.jacobian import jacobian_determinant
from ..spatial.jacobian_kernels import smallest_at
from ..spatial.kernels import ONE
from ..spatial.rows import HELPER

# Smallest Jacobian determinant that counts as healthy; a little above zero, so that interpolating the
# displacement to another grid does not bring folds back.
DETERMINANT_MARGIN = 0.02
# Rounds after which the smoothed neighbourhood grows by one voxel: stubborn folds need more room.
PATIENCE = 6
# Largest inverse error (mm) that is left as it is; above it the margin is raised, twice at most.
INVERSE_TOLERANCE = 0.05
MARGINS = (DETERMINANT_MARGIN, 0.05, 0.1)


@dataclass(frozen=True)
class Repaired:
    """A displacement without folds, and its inverse.

    Attributes:
        displacement, inverse: (3, k, j, i) float32 voxels, (id + displacement) o (id + inverse) = id.
        repaired: voxels whose smallest determinant was below `DETERMINANT_MARGIN`, and that were mended.
        folded: voxels that are folded in the result, by any finite difference.
        error: largest error of the inverse at a voxel, in voxels.
    """

    displacement: np.ndarray
    inverse: np.ndarray
    repaired: int
    folded: int
    error: float


def repair_and_invert(
    displacement: np.ndarray, spacing: float, *, repair: bool = True, device: str = "cpu"
) -> Repaired:
    """Remove folds and invert; where squeezed cells keep the inverse from converging, they are relaxed a bit more.

    Args:
        displacement: (3, k, j, i) float32 voxels; it is mended in place.
        spacing: mm per voxel.
        repair: leave the displacement as it is when False.
        device: a CUDA device on which Triton works looks for folds and inverts; with any other numba does, on the CPU.
    """
    place = _place(device)
    u, repaired, left, inverse = np.ascontiguousarray(displacement, np.float32), 0, 0, None
    there = place.put(u)
    for margin in MARGINS:
        if repair:
            bad = place.indices(place.determinants(there) < margin)
            repaired = bad.size if margin == DETERMINANT_MARGIN else repaired
            left = mend(u, bad, margin)
            there = place.put(u) if bad.size else there
        inverse, error = place.invert(there, start=inverse)
        worst = float(error.max())
        if not repair or worst * spacing <= INVERSE_TOLERANCE:
            break
    folded = int((place.determinants(there) <= 0).sum()) if left or not repair else 0
    return Repaired(u, place.get(inverse), repaired, folded, worst)


class _Place(NamedTuple):
    """Where determinants and inverses are computed, on arrays of that place.

    Attributes:
        put, get: bring a numpy array there and back.
        determinants: the smallest finite-difference determinants; see `jacobian_determinant`, strict.
        indices: flat int64 indices of the voxels of a mask, as a numpy array.
        invert: see `fields.invert`.
    """

    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]
    determinants: Callable[[Any], Any]
    indices: Callable[[Any], np.ndarray]
    invert: Callable[..., tuple[Any, Any]]


def _place(device: str) -> _Place:
    """The device where Triton works on it, else the host."""
    if device != "cpu":
        import torch

        from .engine_torch import triton_for

        if steps := triton_for(torch.device(device)):
            return _Place(
                lambda array: torch.from_numpy(array).to(device),
                lambda tensor: tensor.cpu().numpy(),
                steps.smallest_determinants,
                lambda mask: mask.flatten().nonzero()[:, 0].cpu().numpy(),
                steps.invert,
            )
    return _Place(np.asarray, np.asarray, partial(jacobian_determinant, strict=True), np.flatnonzero, fields.invert)


def mend(u: np.ndarray, bad: np.ndarray, margin: float, *, rounds: int = 200) -> int:
    """Smooth (3, k, j, i) float32 voxels locally, in place, until no finite-difference Jacobian is below `margin`.

    The outermost voxels stay as they are: a displacement that has faded out there still does.

    Args:
        bad: flat int64 indices of the voxels where one is.

    Returns:
        The number of voxels where one still is (0 unless `rounds` ran out).
    """
    if bad.size == 0:
        return 0
    stamp = np.zeros(u.shape[1:], np.int16)
    for n in range(rounds):
        radius = 2 + n // PATIENCE
        near = _neighbourhood(bad, radius, 2 * n + 1, stamp)
        _smooth_at(u, near)
        bad = _below(u, _neighbourhood(bad, radius + 1, 2 * n + 2, stamp), np.float32(margin))
        if bad.size == 0:
            break
    return bad.size


@njit(**HELPER)
def _neighbourhood(centres, radius, mark, stamp):
    """Flat indices of all voxels within `radius` (a cube) of the centres, each once; `stamp` remembers by `mark`."""
    Z, Y, X = stamp.shape
    count = 0
    for pass_ in range(2):
        if pass_ == 1:
            found = np.empty(count, np.int64)
            count = 0
        for n in range(centres.size):
            z, rest = centres[n] // (Y * X), centres[n] % (Y * X)
            y, x = rest // X, rest % X
            for zz in range(max(z - radius, 0), min(z + radius, Z - 1) + 1):
                for yy in range(max(y - radius, 0), min(y + radius, Y - 1) + 1):
                    for xx in range(max(x - radius, 0), min(x + radius, X - 1) + 1):
                        seen = stamp[zz, yy, xx]
                        if pass_ == 0 and seen != mark:
                            stamp[zz, yy, xx] = mark
                            count += 1
                        elif pass_ == 1 and seen == mark:
                            stamp[zz, yy, xx] = -mark
                            found[count] = (zz * Y + yy) * X + xx
                            count += 1
    return found


@njit(**HELPER)
def _smooth_at(u, voxels):
    """One binomial (1 2 1)^3 smoothing of u at the given voxels, all read before any is written; the border stays."""
    Z, Y, X = u.shape[1:]
    values = np.empty((voxels.size, 3), np.float32)
    for n in range(voxels.size):
        z, rest = voxels[n] // (Y * X), voxels[n] % (Y * X)
        y, x = rest // X, rest % X
        for k in range(3):
            total = np.float32(0)
            for dz in range(-1, 2):
                zz = min(max(z + dz, 0), Z - 1)
                for dy in range(-1, 2):
                    yy = min(max(y + dy, 0), Y - 1)
                    w = np.float32((2 - abs(dz)) * (2 - abs(dy)))
                    low, high = u[k, zz, yy, max(x - 1, 0)], u[k, zz, yy, min(x + 1, X - 1)]
                    total += w * (low + (ONE + ONE) * u[k, zz, yy, x] + high)
            values[n, k] = total * np.float32(1 / 64)
    for n in range(voxels.size):
        z, rest = voxels[n] // (Y * X), voxels[n] % (Y * X)
        y, x = rest // X, rest % X
        if z == 0 or y == 0 or x == 0 or z == Z - 1 or y == Y - 1 or x == X - 1:
            continue
        for k in range(3):
            u[k, z, y, x] = values[n, k]


@njit(**HELPER)
def _below(u, voxels, margin):
    """Those of the voxels whose smallest finite-difference Jacobian is below the margin."""
    Y, X = u.shape[2:]
    keep = np.empty(voxels.size, np.bool_)
    for n in range(voxels.size):
        z, rest = voxels[n] // (Y * X), voxels[n] % (Y * X)
        keep[n] = smallest_at(u, z, rest // X, rest % X) < margin
    return voxels[keep]

"""Pure functions on voxel displacements: warp, compose, invert, smooth, resize. Conventions: see the package."""

from __future__ import annotations

import math

import numba
import numpy as np

from . import kernels


def warp(volume: np.ndarray, displacement: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """`volume[x + u(x)]` on the displacement's grid; trilinear float32, or nearest neighbour in the own dtype.

    Positions outside the volume take its border value.
    """
    u = _contiguous(displacement)
    out = np.empty(u.shape[1:], volume.dtype if nearest else np.float32)
    if nearest:
        kernels.warp_nearest(np.ascontiguousarray(volume), u, out)
    else:
        kernels.warp_linear(_contiguous(volume), u, out)
    return out


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The displacement of (id + outer) o (id + inner): `inner` moves first. Both (3, k, j, i) on one grid."""
    out = np.empty(outer.shape, np.float32)
    kernels.compose(_contiguous(outer), _contiguous(inner), np.float32(1), whole(outer.shape[1:]), out)
    return out


def invert(
    displacement: np.ndarray, *, start: np.ndarray | None = None, tolerance: float = 0.005, iterations: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """v with (id + u) o (id + v) = id at every voxel, and what is left of it.

    Args:
        start: where to begin, for instance the inverse of nearly the same displacement.

    Returns:
        v (3, k, j, i) voxels, and the residual |v + u o (id + v)| in voxels, (k, j, i), both float32.
    """
    u = _contiguous(displacement)
    if start is None:
        out = np.empty_like(u)
        kernels.seed_inverse(u, out)
    else:
        out = np.array(start, np.float32)
    error = np.empty(u.shape[1:], np.float32)
    kernels.invert(u, np.float32(tolerance), iterations, out, error)
    return out, error


def gaussian_taps(sigma: float, truncate: float = 2.0) -> np.ndarray:
    """Normalised float32 Gaussian taps out to `truncate` sigmas (at least one voxel)."""
    if sigma <= 0:
        return np.ones(1, np.float32)
    radius = max(1, math.ceil(truncate * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def smooth(fields: np.ndarray, sigma: float, *, truncate: float = 2.0) -> np.ndarray:
    """Gaussian smoothing (sigma in voxels) of (c, k, j, i) or (k, j, i); borders repeat."""
    stack = _contiguous(fields if fields.ndim == 4 else fields[None])
    if sigma <= 0:
        return stack.reshape(fields.shape).copy()
    out = np.empty_like(stack)
    kernels.smooth(stack, gaussian_taps(sigma, truncate), numba.get_num_threads(), whole(stack.shape[1:]), out)
    return out.reshape(fields.shape)


def local_moments(
    a: np.ndarray, b: np.ndarray, sigma: float, *, truncate: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of two volumes (k, j, i) and their covariance under a Gaussian at each voxel (see `smooth`), float32.

    Rounding may leave variances a little below 0.
    """
    ma, mb, aa, bb, ab = smooth(np.stack([a, b, a * a, b * b, a * b]), sigma, truncate=truncate)
    return aa - ma * ma, bb - mb * mb, ab - ma * mb


def resize(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Trilinear resize of (k, j, i) over the same extent; `shrink` when it becomes smaller, so that nothing is lost."""
    return shrink(volume, shape, 0.0)


def shrink(volume: np.ndarray, shape: tuple[int, int, int], sigma: float, *, truncate: float = 3.0) -> np.ndarray:
    """`smooth`, then `resize`, of a volume (k, j, i), in one go: only the voxels that are wanted are computed."""
    out = np.empty(shape, np.float32)
    kernels.weighted_sums(_contiguous(volume), *_neighbours(volume.shape, shape, gaussian_taps(sigma, truncate)), out)
    return out


def resize_displacement(displacement: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A voxel displacement over the same extent at another resolution, in the new voxels."""
    old = displacement.shape[1:]
    first, (z, y, x) = _neighbours(old, shape, gaussian_taps(0.0))
    out = np.empty((3, *shape), np.float32)
    for axis, scale in enumerate(np.float32(np.divide(shape, old))):
        kernels.weighted_sums(_contiguous(displacement[axis]), first, (scale * z, y, x), out[axis])
    return out


def _neighbours(
    old: tuple[int, ...], shape: tuple[int, int, int], taps: np.ndarray
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """What `kernels.weighted_sums` takes to smooth a volume and resize it over the same extent; borders repeat."""
    first, weights = [], []
    for size, new in zip(old, shape, strict=True):
        position = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
        low = position.astype(np.int64)
        share = position - low
        count = min(taps.size + 1, size)
        first.append(np.clip(low - taps.size // 2, 0, size - count))
        sums = np.zeros((new, count))
        for start, part in ((low, 1 - share), (np.minimum(low + 1, size - 1), share)):
            for t, tap in enumerate(taps, -(taps.size // 2)):
                sums[np.arange(new), np.clip(start + t, 0, size - 1) - first[-1]] += tap * part
        weights.append(sums.astype(np.float32))
    return tuple(first), tuple(weights)


def whole(shape: tuple[int, ...]) -> np.ndarray:
    """Spans that cover every row of a (k, j, i) volume."""
    spans = np.zeros((*shape[:2], 2), np.int32)
    spans[..., 1] = shape[2]
    return spans


def spans_of(mask: np.ndarray, margin: int) -> np.ndarray:
    """For every row of a (k, j, i) mask the span from its first to its last voxel, grown by `margin` voxels.

    Returns:
        (k, j, 2) int32: first voxel and one past the last; rows farther than `margin` from the mask are empty.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    width = mask.shape[2]
    hit = mask.any(axis=2)
    low = np.where(hit, mask.argmax(axis=2), width)
    high = np.where(hit, width - mask[:, :, ::-1].argmax(axis=2), 0)
    size = 2 * margin + 1
    low, high = minimum_filter(low, size, mode="nearest"), maximum_filter(high, size, mode="nearest")
    empty = low >= high
    low, high = np.where(empty, 0, np.maximum(low - margin, 0)), np.where(empty, 0, np.minimum(high + margin, width))
    return np.stack([low, high], axis=-1).astype(np.int32)


def within(spans: np.ndarray, width: int) -> np.ndarray:
    """The (k, j, i) boolean mask of spans over rows of `width` voxels."""
    x = np.arange(width, dtype=spans.dtype)
    mask = x >= spans[..., :1]
    mask &= x < spans[..., 1:]
    return mask


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box (k, j, i) with all that is set in a boolean volume, or None where nothing is."""
    spans = []
    for axis in range(3):
        planes = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if planes.size == 0:
            return None
        spans.append(slice(int(planes[0]), int(planes[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)

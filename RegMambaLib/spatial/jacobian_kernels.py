"""Numba kernels of Jacobian determinants of id + u, u (3, k, j, i) float32 voxels, by rows and at single voxels."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .kernels import HALF, ONE, OPTIONS
from .rows import HELPER, determinant


@njit(**HELPER)
def _jacobian_at(u, z, y, x, za, zb, ya, yb, xa, xb):
    """Determinant of id + u's derivative from differences between the given neighbours."""
    hz, hy, hx = ONE / np.float32(zb - za), ONE / np.float32(yb - ya), ONE / np.float32(xb - xa)
    return determinant(
        ONE + (u[0, zb, y, x] - u[0, za, y, x]) * hz,
        (u[0, z, yb, x] - u[0, z, ya, x]) * hy,
        (u[0, z, y, xb] - u[0, z, y, xa]) * hx,
        (u[1, zb, y, x] - u[1, za, y, x]) * hz,
        ONE + (u[1, z, yb, x] - u[1, z, ya, x]) * hy,
        (u[1, z, y, xb] - u[1, z, y, xa]) * hx,
        (u[2, zb, y, x] - u[2, za, y, x]) * hz,
        (u[2, z, yb, x] - u[2, z, ya, x]) * hy,
        ONE + (u[2, z, y, xb] - u[2, z, y, xa]) * hx,
    )


@njit(**HELPER)
def central_at(u, z, y, x):
    """Determinant of id + u at one voxel by central differences, one-sided at the border."""
    Z, Y, X = u.shape[1:]
    return _jacobian_at(
        u, z, y, x, max(z - 1, 0), min(z + 1, Z - 1), max(y - 1, 0), min(y + 1, Y - 1), max(x - 1, 0), min(x + 1, X - 1)
    )


@njit(**HELPER)
def smallest_at(u, z, y, x):
    """The smallest of the central and the eight one-sided determinants at one voxel."""
    Z, Y, X = u.shape[1:]
    worst = central_at(u, z, y, x)
    for side in range(8):
        a, b, c = z - (side & 1), y - (side >> 1 & 1), x - (side >> 2)
        if a >= 0 and b >= 0 and c >= 0 and a + 1 < Z and b + 1 < Y and c + 1 < X:
            worst = min(worst, _jacobian_at(u, z, y, x, a, a + 1, b, b + 1, c, c + 1))
    return worst


@njit(**HELPER)
def _difference(after, before, added, out):
    """out = added + after - before."""
    for x in range(out.size):
        out[x] = added + after[x] - before[x]


@njit(**HELPER)
def _difference_rows(u, z, y, rows):
    """Differences along row y of plane z, the identity's included, into rows (axis, side, component, x).

    Side 0 looks back and side 1 ahead; at the border of the volume both are the one that exists.
    """
    Z, Y, X = u.shape[1:]
    for k in range(3):
        here = u[k, z, y]
        added = [np.float32(k == axis) for axis in range(3)]
        for side in range(2):
            low = min(max(z - 1 + side, 0), Z - 2)
            _difference(u[k, low + 1, y], u[k, low, y], added[0], rows[0, side, k])
            low = min(max(y - 1 + side, 0), Y - 2)
            _difference(u[k, z, low + 1], u[k, z, low], added[1], rows[1, side, k])
        ahead = rows[2, 1, k]
        _difference(here[1:], here[: X - 1], added[2], ahead[: X - 1])
        ahead[X - 1] = ahead[X - 2]
        back = rows[2, 0, k]
        back[1:] = ahead[: X - 1]
        back[0] = ahead[0]


@njit(**HELPER)
def _add_product(a, b, c, d, e, total):
    """total += a (b c - d e)."""
    for x in range(total.size):
        total[x] += a[x] * (b[x] * c[x] - d[x] * e[x])


@njit(**HELPER)
def _determinant_row(p, q, r, out):
    """Determinants with the columns p, q, r, each (3, X)."""
    out[:] = np.float32(0)
    _add_product(p[0], q[1], r[2], r[1], q[2], out)
    _add_product(p[1], q[2], r[0], r[2], q[0], out)
    _add_product(p[2], q[0], r[1], r[0], q[1], out)


@njit(**HELPER)
def _mean_rows(first, second, out):
    for x in range(out.size):
        out[x] = HALF * (first[x] + second[x])


@njit(**HELPER)
def _lower(out, row):
    for x in range(out.size):
        out[x] = min(out[x], row[x])


@njit(**OPTIONS)
def jacobian(u, strict, out):
    """Determinant of id + u by central differences (one-sided at the border); every axis has >= 2 voxels.

    strict: the smallest of this and the eight one-sided determinants at every voxel. Positive everywhere means that
    no finite-difference scheme sees a fold, after Liu et al., "On finite difference Jacobian computation in
    deformable image registration", IJCV 2024.
    """
    Z, Y, X = out.shape
    for z in prange(Z):
        rows = np.empty((3, 2, 3, X), np.float32)
        central = np.empty((3, 3, X), np.float32)
        one_sided = np.empty(X, np.float32)
        for y in range(Y):
            _difference_rows(u, z, y, rows)
            for axis in range(3):
                for k in range(3):
                    _mean_rows(rows[axis, 0, k], rows[axis, 1, k], central[axis, k])
            _determinant_row(central[0], central[1], central[2], out[z, y])
            if strict:
                for side in range(8):
                    p, q, r = rows[0, side & 1], rows[1, side >> 1 & 1], rows[2, side >> 2]
                    _determinant_row(p, q, r, one_sided)
                    _lower(out[z, y], one_sided)

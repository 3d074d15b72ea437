"""Numba kernels on voxel displacements (3, k, j, i) and volumes (k, j, i), float32, parallel over planes.

Positions outside a volume are clamped to its border. Some kernels work within *spans* only: int32 (k, j, 2), the
first and one past the last voxel of every row that matters (see `fields.spans_of`). NaN and infinity keep their
meaning: the fast-math flags allow reordering and fused multiply-add only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .rows import HELPER, RELAXED, add_row, add_rows, determinant, scale_row

OPTIONS: dict[str, Any] = {
    "parallel": True,
    "fastmath": RELAXED,
    "cache": True,
    "boundscheck": False,
    "error_model": "numpy",
}
ONE = np.float32(1)
HALF = np.float32(0.5)


@njit(**HELPER)
def split(position, size):
    """Lower voxel, upper voxel and fraction of a continuous position clamped to [0, size - 1].

    Beyond either border both voxels are the border's, so that nothing changes there: the slope is 0. The voxels are
    unsigned, which saves the check for negative indices; do not calculate with them.
    """
    p = min(max(position, np.float32(0)), np.float32(size - 1))
    low = int(p)
    high = low if position < 0 else min(low + 1, size - 1)
    return np.uintp(low), np.uintp(high), p - np.float32(low)


@njit(**OPTIONS)
def warp_linear(volume, u, out):
    """out[x] = volume[x + u[x]], trilinear; `volume` may have another size than `u`."""
    Z, Y, X = volume.shape
    for z in prange(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
                y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
                x0, x1, fx = split(np.float32(x) + u[2, z, y, x], X)
                a = volume[z0, y0, x0] + (volume[z0, y0, x1] - volume[z0, y0, x0]) * fx
                b = volume[z0, y1, x0] + (volume[z0, y1, x1] - volume[z0, y1, x0]) * fx
                c = volume[z1, y0, x0] + (volume[z1, y0, x1] - volume[z1, y0, x0]) * fx
                d = volume[z1, y1, x0] + (volume[z1, y1, x1] - volume[z1, y1, x0]) * fx
                low = a + (b - a) * fy
                out[z, y, x] = low + (c + (d - c) * fy - low) * fz


@njit(**OPTIONS)
def warp_nearest(volume, u, out):
    """out[x] = volume[round(x + u[x])]; any dtype."""
    Z, Y, X = volume.shape
    for z in prange(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                zz = int(min(max(np.float32(z) + u[0, z, y, x] + HALF, np.float32(0)), np.float32(Z - 1)))
                yy = int(min(max(np.float32(y) + u[1, z, y, x] + HALF, np.float32(0)), np.float32(Y - 1)))
                xx = int(min(max(np.float32(x) + u[2, z, y, x] + HALF, np.float32(0)), np.float32(X - 1)))
                out[z, y, x] = volume[zz, yy, xx]


@njit(**OPTIONS)
def compose(u, v, scale, spans, out):
    """out = s v + u o (id + s v) within the spans: first move by the scaled v, then by u."""
    Z, Y, X = u.shape[1:]
    for z in prange(Z):
        for y in range(Y):
            for i in range(spans[z, y, 0], spans[z, y, 1]):
                x = np.uintp(i)
                vz, vy, vx = scale * v[0, z, y, x], scale * v[1, z, y, x], scale * v[2, z, y, x]
                z0, z1, fz = split(np.float32(z) + vz, Z)
                y0, y1, fy = split(np.float32(y) + vy, Y)
                x0, x1, fx = split(np.float32(i) + vx, X)
                for k in range(3):
                    a = u[k, z0, y0, x0] + (u[k, z0, y0, x1] - u[k, z0, y0, x0]) * fx
                    b = u[k, z0, y1, x0] + (u[k, z0, y1, x1] - u[k, z0, y1, x0]) * fx
                    c = u[k, z1, y0, x0] + (u[k, z1, y0, x1] - u[k, z1, y0, x0]) * fx
                    d = u[k, z1, y1, x0] + (u[k, z1, y1, x1] - u[k, z1, y1, x0]) * fx
                    low = a + (b - a) * fy
                    value = low + (c + (d - c) * fy - low) * fz
                    out[k, z, y, x] = value + (vz if k == 0 else vy if k == 1 else vx)


@njit(**OPTIONS)
def weighted_sums(volume, first, weights, out):
    """Along each axis, a voxel of `out` is a sum of neighbours in a volume; (k, j, i), axes one after another.

    Args:
        first: for each axis, the first neighbour of every voxel.
        weights: for each axis, of every voxel's neighbours, (size of `out`, neighbours) float32.
    """
    Y, X = volume.shape[1:]
    for z in prange(out.shape[0]):
        plane, row = np.empty((Y, X), np.float32), np.empty(X, np.float32)
        for y in range(Y):
            scale_row(volume[first[0][z], y], weights[0][z, 0], plane[y])
            for t in range(1, weights[0].shape[1]):
                add_row(plane[y], volume[first[0][z] + t, y], weights[0][z, t])
        for y in range(out.shape[1]):
            scale_row(plane[first[1][y]], weights[1][y, 0], row)
            for t in range(1, weights[1].shape[1]):
                add_row(row, plane[first[1][y] + t], weights[1][y, t])
            for x in range(out.shape[2]):
                total = np.float32(0)
                for t in range(weights[2].shape[1]):
                    total += weights[2][x, t] * row[first[2][x] + t]
                out[z, y, x] = total


@njit(**HELPER)
def _reach(spans, z, y, r):
    """The smallest span of row y that holds those of the planes z - r .. z + r; empty when all are."""
    low, high = spans.dtype.type(2**31 - 1), spans.dtype.type(0)
    for near in range(max(z - r, 0), min(z + r, spans.shape[0] - 1) + 1):
        if spans[near, y, 0] < spans[near, y, 1]:
            low, high = min(low, spans[near, y, 0]), max(high, spans[near, y, 1])
    return (low, high) if low < high else (high, high)


@njit(**HELPER)
def _smooth_plane(source, z, kernel, spans, row, out):
    """Gaussian of one plane along y and x into `out`, where planes up to r away need it; borders repeat.

    `row` is X + 2r of scratch.
    """
    Y, X = source.shape[1], source.shape[2]
    r = kernel.size // 2
    for y in range(Y):
        low, high = _reach(spans, z, y, r)
        if low == high:
            continue
        first, last = max(low - r, 0), min(high + r, X)
        along_y = row[r + first : r + last]
        scale_row(source[z, y, first:last], kernel[r], along_y)
        for t in range(1, r + 1):
            up, down = source[z, max(y - t, 0), first:last], source[z, min(y + t, Y - 1), first:last]
            add_rows(along_y, up, down, kernel[r + t])
        if first == 0:
            row[:r] = row[r]
        if last == X:
            row[r + X :] = row[r + X - 1]
        target = out[y, low:high]
        scale_row(row[r + low : r + high], kernel[r], target)
        for t in range(1, r + 1):
            add_rows(target, row[r + low - t : r + high - t], row[r + low + t : r + high + t], kernel[r + t])


@njit(**OPTIONS)
def smooth(fields, kernel, slabs, spans, out):
    """Separable Gaussian of every channel of (c, k, j, i) within the spans; borders of the volume repeat.

    Each thread walks a slab of planes and keeps the 2r + 1 planes it needs, smoothed in-plane, in a ring: every
    value is read from and written to main memory once. Every channel is cut into `slabs` of them. `out` is not
    `fields`, and stays as it is outside the spans.
    """
    C, Z, Y, X = fields.shape
    r = kernel.size // 2
    depth = 2 * r + 1
    for job in prange(C * slabs):
        c, s = job // slabs, job % slabs
        start, stop = s * Z // slabs, (s + 1) * Z // slabs
        ring = np.empty((depth, Y, X), np.float32)
        row = np.empty(X + 2 * r, np.float32)
        ready = max(start - r, 0) - 1
        for z in range(start, stop):
            while ready < min(z + r, Z - 1):
                ready += 1
                _smooth_plane(fields[c], ready, kernel, spans, row, ring[ready % depth])
            middle = ring[z % depth]
            for y in range(Y):
                low, high = spans[z, y, 0], spans[z, y, 1]
                if low >= high:
                    continue
                target = out[c, z, y, low:high]
                scale_row(middle[y, low:high], kernel[r], target)
                for t in range(1, r + 1):
                    up, down = ring[max(z - t, 0) % depth], ring[min(z + t, Z - 1) % depth]
                    add_rows(target, up[y, low:high], down[y, low:high], kernel[r + t])


@njit(**OPTIONS)
def grow(u, before, factors, out):
    """out = u with its edges continued, from `before` (k, j, i) voxels in front on, times a factor along each axis.

    `factors` are three float32 vectors, as long as the axes of `out`.
    """
    Z, Y, X = u.shape[1:]
    along_z, along_y, along_x = factors
    for z in prange(out.shape[1]):
        for k in range(3):
            for y in range(out.shape[2]):
                row = u[k, min(max(z - before[0], 0), Z - 1), min(max(y - before[1], 0), Y - 1)]
                target = out[k, z, y]
                factor = along_z[z] * along_y[y]
                for x in range(target.size):
                    target[x] = row[min(max(x - before[2], 0), X - 1)] * (factor * along_x[x])


@njit(**HELPER)
def _land(u, landed):
    """`landed` (int32, -1 before) takes at every voxel the last of those that u leads there, by its flat index.

    The exact offset to the voxel's centre is u's landing point; -u is right to half a voxel.
    """
    Z, Y, X = landed.shape
    for z in range(Z):
        for y in range(Y):
            for x in range(X):
                zz = int(np.floor(np.float32(z) + u[0, z, y, x] + HALF))
                yy = int(np.floor(np.float32(y) + u[1, z, y, x] + HALF))
                xx = int(np.floor(np.float32(x) + u[2, z, y, x] + HALF))
                if 0 <= zz < Z and 0 <= yy < Y and 0 <= xx < X:
                    landed[zz, yy, xx] = (z * Y + y) * X + x


@njit(**HELPER)
def _spread(landed, backward):
    """Let gaps (-1) take the entry of the voxel before them, or behind them, along x, y or z; returns the gaps left."""
    Z, Y, X = landed.shape
    left = 0
    for i in range(Z):
        z = Z - 1 - i if backward else i
        for j in range(Y):
            y = Y - 1 - j if backward else j
            for k in range(X):
                x = X - 1 - k if backward else k
                if landed[z, y, x] >= 0:
                    continue
                side = 1 if backward else -1
                for axis in range(3):
                    zz = z + side if axis == 2 else z
                    yy = y + side if axis == 1 else y
                    xx = x + side if axis == 0 else x
                    if 0 <= zz < Z and 0 <= yy < Y and 0 <= xx < X and landed[zz, yy, xx] >= 0:
                        landed[z, y, x] = landed[zz, yy, xx]
                        break
                left += landed[z, y, x] < 0
    return left


@njit(**OPTIONS)
def seed_inverse(u, out):
    """Rough inverse into `out`: -u of a voxel that lands there, spread outwards into the gaps."""
    Z, Y, X = u.shape[1:]
    landed = np.full((Z, Y, X), -1, np.int32)
    _land(u, landed)
    if _spread(landed, False) > 0:
        _spread(landed, True)
    flat = u.reshape(3, Z * Y * X)
    for z in prange(Z):
        for y in range(Y):
            for k in range(3):
                for x in range(X):
                    n = landed[z, y, x]
                    out[k, z, y, x] = -flat[k, np.uintp(n)] if n >= 0 else -u[k, z, y, x]


@njit(**OPTIONS)
def invert(u, tolerance, iterations, out, error):
    """v with v(x) + u(x + v(x)) = 0 at every voxel by damped Newton steps, started from `out`.

    The fixed point v <- -u(x + v) (Chen et al., Med Phys 2008) only converges where u is a contraction; dividing
    the residual by the derivative of id + u inside the trilinear cell converges wherever there is no fold. A step
    is halved until the residual shrinks. `error` (k, j, i) takes the last residual in voxels.
    """
    Z, Y, X = u.shape[1:]
    for z in prange(Z):
        residual = np.empty(3, np.float32)
        slope = np.empty((3, 3), np.float32)
        for y in range(Y):
            for x in range(X):
                vz, vy, vx = out[0, z, y, x], out[1, z, y, x], out[2, z, y, x]
                bz, by, bx = vz, vy, vx
                sz = sy = sx = np.float32(0)
                best = np.float32(1e30)
                damping = ONE
                for _ in range(iterations):
                    z0, z1, fz = split(np.float32(z) + vz, Z)
                    y0, y1, fy = split(np.float32(y) + vy, Y)
                    x0, x1, fx = split(np.float32(x) + vx, X)
                    for k in range(3):
                        a0, b0 = u[k, z0, y0, x0], u[k, z0, y1, x0]
                        c0, d0 = u[k, z1, y0, x0], u[k, z1, y1, x0]
                        da, db = u[k, z0, y0, x1] - a0, u[k, z0, y1, x1] - b0
                        dc, dd = u[k, z1, y0, x1] - c0, u[k, z1, y1, x1] - d0
                        a, b, c, d = a0 + da * fx, b0 + db * fx, c0 + dc * fx, d0 + dd * fx
                        low, high = a + (b - a) * fy, c + (d - c) * fy
                        residual[k] = low + (high - low) * fz
                        slope[k, 0] = high - low
                        slope[k, 1] = (b - a) * (ONE - fz) + (d - c) * fz
                        slope[k, 2] = (da * (ONE - fy) + db * fy) * (ONE - fz) + (dc * (ONE - fy) + dd * fy) * fz
                    residual[0] += vz
                    residual[1] += vy
                    residual[2] += vx
                    size = residual[0] ** 2 + residual[1] ** 2 + residual[2] ** 2
                    if size < best:
                        best = size
                        bz, by, bx = vz, vy, vx
                        damping = ONE
                        for k in range(3):
                            slope[k, k] += ONE
                        det = determinant(
                            slope[0, 0],
                            slope[0, 1],
                            slope[0, 2],
                            slope[1, 0],
                            slope[1, 1],
                            slope[1, 2],
                            slope[2, 0],
                            slope[2, 1],
                            slope[2, 2],
                        )
                        if det > np.float32(1e-4):
                            sz, sy, sx = _solve(slope, residual, det)
                        else:
                            sz, sy, sx = residual[0], residual[1], residual[2]
                        largest = max(abs(sz), abs(sy), abs(sx))
                        if largest > np.float32(2):
                            damping = np.float32(2) / largest
                    else:
                        damping *= HALF
                    if best < tolerance * tolerance:
                        break
                    vz, vy, vx = bz - damping * sz, by - damping * sy, bx - damping * sx
                out[0, z, y, x], out[1, z, y, x], out[2, z, y, x] = bz, by, bx
                error[z, y, x] = np.sqrt(best)


@njit(**HELPER)
def _solve(m, r, det):
    """m^-1 r for a 3x3 matrix by Cramer's rule."""
    a = determinant(r[0], m[0, 1], m[0, 2], r[1], m[1, 1], m[1, 2], r[2], m[2, 1], m[2, 2])
    b = determinant(m[0, 0], r[0], m[0, 2], m[1, 0], r[1], m[1, 2], m[2, 0], r[2], m[2, 2])
    c = determinant(m[0, 0], m[0, 1], r[0], m[1, 0], m[1, 1], r[1], m[2, 0], m[2, 1], r[2])
    return a / det, b / det, c / det

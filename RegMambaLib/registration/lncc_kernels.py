"""Numba kernels of the squared local correlation and its gradient. float32, (k, j, i).

The analytic gradient of Avants et al. (Med Image Anal 2008): with window sums S of F, M, FF, MM, FM at every voxel,
cc = cross^2 / (varF varM + eps), its derivative with respect to M(y) is a sum over the windows that contain y, so
three further box sums give it. Box sums are running sums along z, y and x.

The slope of the moving image is taken by central differences of the warped image, and not as the exact derivative of
trilinear interpolation: that one jumps at every voxel border, and the rougher force costs .01 of Dice on 1 mm brains.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..spatial.kernels import ONE, OPTIONS, split
from ..spatial.rows import HELPER, add_row, bounds_of, multiply_rows, replace_row

ZERO = np.float32(0)


@njit(**HELPER)
def _box_row(row, r, out):
    """out[x] = row[x] + .. + row[x + 2r]."""
    out[:] = row[: out.size]
    for t in range(1, 2 * r + 1):
        add_row(out, row[t : t + out.size], ONE)


@njit(**HELPER)
def _slide_in(plane, y0, y1, x0, x1, r, column, boxes, old, total):
    """total += box - old and old = box, for the in-plane box sums of a plane that is 0 outside y0:y1, x0:x1.

    `column` (X + 2r) and `boxes` (X) are scratch.
    """
    Y, X = plane.shape
    low, high = max(x0 - r, 0), min(x1 + r, X)
    column[:] = ZERO
    inner = column[r + x0 : r + x1]
    for y in range(y0 - r, min(y1 + r, Y)):
        # The window around row y reaches from y - r to y + r.
        if y + r < y1:
            add_row(inner, plane[y + r, x0:x1], ONE)
        if y - r - 1 >= y0:
            add_row(inner, plane[y - r - 1, x0:x1], -ONE)
        if y >= 0:
            _box_row(column[low : high + 2 * r], r, boxes[low:high])
            replace_row(total[y, low:high], old[y, low:high], boxes[low:high])


@njit(**HELPER)
def _slide_out(spans, z, r, old, total):
    """total -= old and old = 0, for the in-plane box sums of plane z; nothing where there is no such plane."""
    if z < 0 or z >= spans.shape[0]:
        return
    Y, X = total.shape[1:]
    y0, y1, x0, x1 = bounds_of(spans, z)
    for n in range(total.shape[0]):
        for y in range(max(y0 - r, 0), min(y1 + r, Y)):
            row = old[n, y, max(x0 - r, 0) : min(x1 + r, X)]
            add_row(total[n, y, max(x0 - r, 0) : min(x1 + r, X)], row, -ONE)
            row[:] = ZERO


@njit(**HELPER)
def _warp_row(moving, u, z, y, low, high, out):
    """Row y of plane z of moving(x + u(x)), trilinear, from low to high."""
    Z, Y, X = moving.shape
    for i in range(low, high):
        x = np.uintp(i)
        z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
        y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
        x0, x1, fx = split(np.float32(i) + u[2, z, y, x], X)
        a0, b0 = moving[z0, y0, x0], moving[z0, y1, x0]
        c0, d0 = moving[z1, y0, x0], moving[z1, y1, x0]
        a, b = a0 + (moving[z0, y0, x1] - a0) * fx, b0 + (moving[z0, y1, x1] - b0) * fx
        c, d = c0 + (moving[z1, y0, x1] - c0) * fx, d0 + (moving[z1, y1, x1] - d0) * fx
        below, above = a + (b - a) * fy, c + (d - c) * fy
        out[x] = below + (above - below) * fz


@njit(**HELPER)
def _times_difference(pull, after, before, distance, out):
    """out = pull (after - before) / distance; 0 where there is no neighbour (distance 0)."""
    scale = ONE / np.float32(distance) if distance > 0 else ZERO
    for x in range(out.size):
        out[x] = pull[x] * (after[x] - before[x]) * scale


@njit(**HELPER)
def _force_row(pull, below, plane, above, distance, y, low, force):
    """Row y of the force (3, X) from `low` on: `pull` times the central differences of the warped image.

    Args:
        below, plane, above: (Y, X) planes of the warped image around the force's own.
        distance: planes between `below` and `above`.
    """
    Y, X = plane.shape
    high = low + pull.size
    _times_difference(pull, above[y, low:high], below[y, low:high], distance, force[0, low:high])
    y0, y1 = max(y - 1, 0), min(y + 1, Y - 1)
    _times_difference(pull, plane[y1, low:high], plane[y0, low:high], y1 - y0, force[1, low:high])
    row, out = plane[y], force[2]
    x0, x1 = max(low, 1), min(high, X - 1)
    _times_difference(pull[x0 - low : x1 - low], row[x0 + 1 : x1 + 1], row[x0 - 1 : x1 - 1], 2, out[x0:x1])
    if low == 0:
        out[0] = pull[0] * (row[min(1, X - 1)] - row[0])
    if high == X:
        out[X - 1] = pull[pull.size - 1] * (row[X - 1] - row[max(X - 2, 0)])


@njit(**HELPER)
def _deviation(squares, sums, per_voxel, epsilon, out):
    """Sum of the squared deviations from the mean of each window, plus epsilon."""
    for x in range(out.size):
        out[x] = max(squares[x] - sums[x] * sums[x] * per_voxel, ZERO) + epsilon


@njit(**HELPER)
def _ratio(cross, fixed_variance, scale, out):
    """scale: variance of the moving image, becomes 1 / (varF varM); out = cross * scale."""
    for x in range(out.size):
        scale[x] = ONE / (fixed_variance[x] * scale[x])
    for x in range(out.size):
        out[x] = cross[x] * scale[x]


@njit(**HELPER)
def _coefficients(cross, scale, fixed_variance, fixed_sum, moving_sum, per_voxel, a, b, c):
    """What a window adds to the derivative at y, a F(y) - b M(y) + c, from a = w cross scale; returns sum of w cc."""
    total = ZERO
    for x in range(a.size):
        total += a[x] * cross[x]
    for x in range(a.size):
        a[x] += a[x]
    for x in range(a.size):
        b[x] = a[x] * cross[x] * scale[x] * fixed_variance[x]
    for x in range(a.size):
        c[x] = (b[x] * moving_sum[x] - a[x] * fixed_sum[x]) * per_voxel
    return total


@njit(**HELPER)
def _cross(products, fixed_sum, moving_sum, per_voxel, epsilon, out):
    for x in range(out.size):
        out[x] = products[x] - fixed_sum[x] * moving_sum[x] * per_voxel + epsilon


@njit(**HELPER)
def _pull(fixed, warped, a, b, c, out):
    for x in range(out.size):
        out[x] = fixed[x] * a[x] + c[x]
    for x in range(out.size):
        out[x] -= warped[x] * b[x]


@njit(**OPTIONS)
def fixed_moments(fixed, r, epsilon, slabs, mean_sum, variance):
    """Window sums of the fixed image, and of its squared deviation plus epsilon; side 2r + 1, zeros outside."""
    Z, Y, X = fixed.shape
    depth = 2 * r + 1
    per_voxel = np.float32(1 / depth**3)
    for s in prange(slabs):
        start, stop = s * Z // slabs, (s + 1) * Z // slabs
        ring = np.zeros((depth, 2, Y, X), np.float32)
        total = np.zeros((2, Y, X), np.float32)
        square = np.empty((Y, X), np.float32)
        column = np.empty(X + 2 * r, np.float32)
        boxes = np.empty(X, np.float32)
        for q in range(start - r, stop + r):
            old = ring[(q + depth) % depth]
            if 0 <= q < Z:
                for y in range(Y):
                    multiply_rows(fixed[q, y], fixed[q, y], square[y])
                _slide_in(fixed[q], 0, Y, 0, X, r, column, boxes, old[0], total[0])
                _slide_in(square, 0, Y, 0, X, r, column, boxes, old[1], total[1])
            else:
                for n in range(2):
                    for y in range(Y):
                        add_row(total[n, y], old[n, y], -ONE)
            z = q - r
            if start <= z < stop:
                for y in range(Y):
                    mean_sum[z, y] = total[0, y]
                    _deviation(total[1, y], total[0, y], per_voxel, epsilon, variance[z, y])


@njit(**OPTIONS)
def lncc_force(fixed, moving, u, fixed_sum, fixed_variance, weight, r, epsilon, slabs, spans, force):
    """Gradient of the summed squared LNCC with respect to u, written to `force` (3, k, j, i); returns the sum.

    It is the exact derivative by the warped image's values, times their central differences. Both images are 0 outside
    the spans; windows centred there do not count, and `force` is not touched there. Everything is fused: a thread walks
    a slab of planes, warps one plane at a time, keeps 2r + 1 planes in rings and writes each force once.

    Args:
        weight: (k, j, i), what each window counts; of size 0: all count 1.
        r: window radius in voxels (side 2r + 1).
        slabs: how many threads share the volume; each recomputes 2r planes at its ends.
        fixed_variance: of `fixed_moments`, with the same epsilon.
        epsilon: variance (sum over the window) that both images are taken to have in common beside their own: flat
            regions stay silent, and nothing pulls where the images are the same.
    """
    Z, Y, X = fixed.shape
    depth = 2 * r + 1
    per_voxel = np.float32(1 / depth**3)
    totals = np.zeros(slabs, np.float64)
    for s in prange(slabs):
        start, stop = s * Z // slabs, (s + 1) * Z // slabs
        # The slope of plane z wants the planes beside it too.
        held = depth + 1
        warped = np.zeros((held, Y, X), np.float32)
        ring = np.zeros((depth, 3, Y, X), np.float32)
        ring2 = np.zeros((depth, 3, Y, X), np.float32)
        sums = np.zeros((3, Y, X), np.float32)
        sums2 = np.zeros((3, Y, X), np.float32)
        planes = np.zeros((3, Y, X), np.float32)
        column = np.empty(X + 2 * r, np.float32)
        scratch = np.empty((2, X), np.float32)
        for q in range(start - 2 * r, stop + 2 * r):
            slot = (q + 2 * depth) % depth
            _slide_out(spans, q - depth, r, ring[slot], sums)
            if 0 <= q < Z:
                y0, y1, x0, x1 = bounds_of(spans, q)
                plane = warped[q % held]
                plane[:] = ZERO
                for y in range(y0, y1):
                    planes[:, y, x0:x1] = ZERO
                    low, high = spans[q, y, 0], spans[q, y, 1]
                    _warp_row(moving, u, q, y, low, high, plane[y])
                    m = plane[y, low:high]
                    planes[0, y, low:high] = m
                    multiply_rows(m, m, planes[1, y, low:high])
                    multiply_rows(m, fixed[q, y, low:high], planes[2, y, low:high])
                for n in range(3):
                    _slide_in(planes[n], y0, y1, x0, x1, r, column, scratch[0], ring[slot, n], sums[n])
            c = q - r
            if c < start - r:
                continue
            slot = (c + 2 * depth) % depth
            _slide_out(spans, c - depth, r, ring2[slot], sums2)
            if 0 <= c < Z:
                y0, y1, x0, x1 = bounds_of(spans, c)
                for y in range(y0, y1):
                    planes[:, y, x0:x1] = ZERO
                    low, high = spans[c, y, 0], spans[c, y, 1]
                    moving_sum = sums[0, y, low:high]
                    own_sum, own_variance = fixed_sum[c, y, low:high], fixed_variance[c, y, low:high]
                    cross, scale = scratch[0, : high - low], scratch[1, : high - low]
                    a = planes[0, y, low:high]
                    _cross(sums[2, y, low:high], own_sum, moving_sum, per_voxel, epsilon, cross)
                    _deviation(sums[1, y, low:high], moving_sum, per_voxel, epsilon, scale)
                    _ratio(cross, own_variance, scale, a)
                    if weight.size > 0:
                        multiply_rows(a, weight[c, y, low:high], a)
                    part = _coefficients(
                        cross,
                        scale,
                        own_variance,
                        own_sum,
                        moving_sum,
                        per_voxel,
                        a,
                        planes[1, y, low:high],
                        planes[2, y, low:high],
                    )
                    if start <= c < stop:
                        totals[s] += part
                for n in range(3):
                    _slide_in(planes[n], y0, y1, x0, x1, r, column, scratch[0], ring2[slot, n], sums2[n])
            z = c - r
            if start <= z < stop:
                z0, z1 = max(z - 1, 0), min(z + 1, Z - 1)
                below, plane, above = warped[z0 % held], warped[z % held], warped[z1 % held]
                for y in range(Y):
                    low, high = spans[z, y, 0], spans[z, y, 1]
                    if low >= high:
                        continue
                    pull = scratch[0, : high - low]
                    a, b, c_sum = sums2[0, y, low:high], sums2[1, y, low:high], sums2[2, y, low:high]
                    _pull(fixed[z, y, low:high], plane[y, low:high], a, b, c_sum, pull)
                    _force_row(pull, below, plane, above, z1 - z0, y, low, force[:, z, y])
    return totals.sum()

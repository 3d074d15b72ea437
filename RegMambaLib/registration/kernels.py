"""Numba kernels of pairwise refinement: forces of features and labels, the optimiser's update. float32, (k, j, i)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..spatial.kernels import ONE, OPTIONS, split
from ..spatial.rows import HELPER, multiply_rows

ZERO = np.float32(0)


@njit(**OPTIONS)
def channel_force(fixed, moving, u, weight, spans, force):
    """Downhill direction of the squared difference of (k, j, i, c) features; returns the weighted sum of it.

    Used with MIND-SSC descriptors: channels are last so that one gather brings all of them.
    """
    Z, Y, X, C = moving.shape
    weighted = weight.size > 0
    totals = np.zeros(u.shape[1], np.float64)
    for z in prange(u.shape[1]):
        for y in range(u.shape[2]):
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
                y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
                x0, x1, fx = split(np.float32(x) + u[2, z, y, x], X)
                gz = gy = gx = loss = ZERO
                for n in range(C):
                    a0, b0 = moving[z0, y0, x0, n], moving[z0, y1, x0, n]
                    c0, d0 = moving[z1, y0, x0, n], moving[z1, y1, x0, n]
                    da, db = moving[z0, y0, x1, n] - a0, moving[z0, y1, x1, n] - b0
                    dc, dd = moving[z1, y0, x1, n] - c0, moving[z1, y1, x1, n] - d0
                    a, b, c, d = a0 + da * fx, b0 + db * fx, c0 + dc * fx, d0 + dd * fx
                    low, high = a + (b - a) * fy, c + (d - c) * fy
                    gap = fixed[z, y, x, n] - (low + (high - low) * fz)
                    loss += gap * gap
                    gz += gap * (high - low)
                    gy += gap * ((b - a) * (ONE - fz) + (d - c) * fz)
                    gx += gap * ((da * (ONE - fy) + db * fy) * (ONE - fz) + (dc * (ONE - fy) + dd * fy) * fz)
                w = weight[z, y, x] if weighted else ONE
                totals[z] += w * loss
                force[0, z, y, x] = w * gz
                force[1, z, y, x] = w * gy
                force[2, z, y, x] = w * gx
    return totals.sum()


@njit(**OPTIONS)
def label_overlap(fixed, moving, u, labels, spans, overlap, size):
    """Soft-Dice sums per label: `overlap` = sum F_l M_l(x + u), `size` = sum F_l + sum M_l(x + u), trilinear.

    Label maps are int32 with classes 0 .. labels - 1, 0 being background (not counted).
    """
    Z, Y, X = moving.shape
    part = np.zeros((u.shape[1], 2, labels), np.float32)
    for z in prange(u.shape[1]):
        for y in range(u.shape[2]):
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                own = fixed[z, y, x]
                part[z, 1, own] += ONE
                z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
                y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
                x0, x1, fx = split(np.float32(x) + u[2, z, y, x], X)
                for corner in range(8):
                    zz, wz = (z1, fz) if corner & 1 else (z0, ONE - fz)
                    yy, wy = (y1, fy) if corner & 2 else (y0, ONE - fy)
                    xx, wx = (x1, fx) if corner & 4 else (x0, ONE - fx)
                    label = moving[zz, yy, xx]
                    w = wz * wy * wx
                    part[z, 1, label] += w
                    if label == own:
                        part[z, 0, label] += w
    for z in range(part.shape[0]):
        for label in range(labels):
            overlap[label] += part[z, 0, label]
            size[label] += part[z, 1, label]


@njit(**OPTIONS)
def label_force(fixed, moving, u, overlap, size, spans, force):
    """Gradient of the mean soft Dice of all labels with respect to u (sums from `label_overlap`)."""
    Z, Y, X = moving.shape
    for z in prange(u.shape[1]):
        for y in range(u.shape[2]):
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                own = fixed[z, y, x]
                z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
                y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
                x0, x1, fx = split(np.float32(x) + u[2, z, y, x], X)
                gz = gy = gx = ZERO
                for corner in range(8):
                    zz, wz, dz = (z1, fz, ONE) if corner & 1 else (z0, ONE - fz, -ONE)
                    yy, wy, dy = (y1, fy, ONE) if corner & 2 else (y0, ONE - fy, -ONE)
                    xx, wx, dx = (x1, fx, ONE) if corner & 4 else (x0, ONE - fx, -ONE)
                    label = moving[zz, yy, xx]
                    if label == 0 or size[label] <= ZERO:
                        continue
                    s = size[label]
                    pull = -np.float32(2) * overlap[label] / (s * s)
                    if label == own:
                        pull += np.float32(2) / s
                    gz += pull * dz * wy * wx
                    gy += pull * wz * dy * wx
                    gx += pull * wz * wy * dx
                force[0, z, y, x] = gz
                force[1, z, y, x] = gy
                force[2, z, y, x] = gx


@njit(**HELPER)
def _average(mean, keep, value):
    for x in range(mean.size):
        mean[x] = keep * mean[x] + (ONE - keep) * value[x]


@njit(**HELPER)
def _add_square(total, row):
    for x in range(total.size):
        total[x] += row[x] * row[x]


@njit(**HELPER)
def _scale(second, correction1, correction2, floor, out):
    for x in range(out.size):
        out[x] = correction1 / (np.sqrt(second[x] * correction2) + floor)


@njit(**OPTIONS)
def adam(gradient, first, second, beta1, beta2, correction1, correction2, floor, spans, out):
    """Adam's direction into `out`, with one second moment per voxel; returns the largest step length.

    Adam (Kingma and Ba 2015) scales every component by its own second moment, which turns directions towards the
    diagonals of the grid. Here the moment is that of the length, so the direction stays.

    Args:
        first, second: (3, k, j, i) and (k, j, i), updated in place.
        correction1, correction2: of the moments' bias, 1 / (1 - beta^iteration).
        floor: added to the root of the second moment.
    """
    Z, Y, X = gradient.shape[1:]
    largest = np.zeros(Z, np.float32)
    for z in prange(Z):
        room = np.empty((2, X), np.float32)
        top = ZERO
        for y in range(Y):
            low, high = spans[z, y, 0], spans[z, y, 1]
            if low >= high:
                continue
            lengths, scale, v = room[0, : high - low], room[1, : high - low], second[z, y, low:high]
            lengths[:] = ZERO
            for k in range(3):
                _add_square(lengths, gradient[k, z, y, low:high])
                _average(first[k, z, y, low:high], beta1, gradient[k, z, y, low:high])
            _average(v, beta2, lengths)
            _scale(v, correction1, correction2, floor, scale)
            lengths[:] = ZERO
            for k in range(3):
                target = out[k, z, y, low:high]
                multiply_rows(first[k, z, y, low:high], scale, target)
                _add_square(lengths, target)
            for x in range(lengths.size):
                top = max(top, lengths[x])
        largest[z] = top
    return np.sqrt(largest.max())


@njit(**OPTIONS)
def longest(vectors, spans):
    """The largest length of the (3, k, j, i) vectors within the spans; 0 where there are none."""
    Z, Y, X = vectors.shape[1:]
    largest = np.zeros(Z, np.float32)
    for z in prange(Z):
        lengths = np.empty(X, np.float32)
        for y in range(Y):
            low, high = spans[z, y, 0], spans[z, y, 1]
            lengths[:] = ZERO
            for k in range(3):
                _add_square(lengths[: high - low], vectors[k, z, y, low:high])
            largest[z] = max(largest[z], lengths.max())
    return np.sqrt(largest.max())


@njit(**OPTIONS)
def mean_square(field, spans):
    """Mean over the whole volume of |v|^2 of a field (3, k, j, i) that counts within spans only."""
    totals = np.zeros(field.shape[1], np.float64)
    for z in prange(field.shape[1]):
        for y in range(field.shape[2]):
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                for n in range(3):
                    totals[z] += field[n, z, y, x] * field[n, z, y, x]
    return totals.sum() / max(field[0].size, 1)


@njit(**OPTIONS)
def add_resized(field, factor, spans, out):
    """out += factor field within spans, a field (3, k, j, i) of any resolution over the same extent, trilinear."""
    Z, Y, X = field.shape[1:]
    same = field.shape == out.shape
    sz, sy, sx = Z / out.shape[1], Y / out.shape[2], X / out.shape[3]
    for z in prange(out.shape[1]):
        z0, z1, fz = split(np.float32((z + 0.5) * sz - 0.5), Z)
        for y in range(out.shape[2]):
            if same:
                for n in range(3):
                    for x in range(spans[z, y, 0], spans[z, y, 1]):
                        out[n, z, y, x] += factor * field[n, z, y, x]
                continue
            y0, y1, fy = split(np.float32((y + 0.5) * sy - 0.5), Y)
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                x0, x1, fx = split(np.float32((x + 0.5) * sx - 0.5), X)
                for n in range(3):
                    a = field[n, z0, y0, x0] * (ONE - fx) + field[n, z0, y0, x1] * fx
                    b = field[n, z0, y1, x0] * (ONE - fx) + field[n, z0, y1, x1] * fx
                    c = field[n, z1, y0, x0] * (ONE - fx) + field[n, z1, y0, x1] * fx
                    d = field[n, z1, y1, x0] * (ONE - fx) + field[n, z1, y1, x1] * fx
                    value = (a * (ONE - fy) + b * fy) * (ONE - fz) + (c * (ONE - fy) + d * fy) * fz
                    out[n, z, y, x] += factor * value


@njit(**OPTIONS)
def sample_displacement(u, spans, out):
    """A voxel displacement (3, k, j, i) on a coarser grid over the same extent, in its voxels, within spans.

    Of the voxel that lies nearest: u is smooth, and a mean of several would read all of it.
    """
    Z, Y, X = u.shape[1:]
    sz, sy, sx = Z / out.shape[1], Y / out.shape[2], X / out.shape[3]
    scale = np.float32(1 / sz), np.float32(1 / sy), np.float32(1 / sx)
    for z in prange(out.shape[1]):
        from_z = int((z + 0.5) * sz)
        for y in range(out.shape[2]):
            from_y = int((y + 0.5) * sy)
            for x in range(spans[z, y, 0], spans[z, y, 1]):
                from_x = int((x + 0.5) * sx)
                for n in range(3):
                    out[n, z, y, x] = scale[n] * u[n, from_z, from_y, from_x]

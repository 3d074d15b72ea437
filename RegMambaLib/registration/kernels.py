"""Numba kernels of pairwise refinement: similarity forces and the optimiser's update. float32, (k, j, i)."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..spatial.kernels import HELPER, ONE, OPTIONS, split

ZERO = np.float32(0)


@njit(**HELPER)
def _add_rows(total, rows, y, sign, r, X):
    for n in range(rows.shape[0]):
        for x in range(X):
            total[n, r + x] += sign * rows[n, y, x]


@njit(**HELPER)
def _box_plane(planes, r, rows, out):
    """In-plane box sums of (n, Y, X) with zeros outside; `rows` (n, X + 2r) is scratch with zero ends."""
    N, Y, X = planes.shape
    rows[:] = ZERO
    for y in range(min(r, Y)):
        _add_rows(rows, planes, y, ONE, r, X)
    for y in range(Y):
        if y + r < Y:
            _add_rows(rows, planes, y + r, ONE, r, X)
        if y - r - 1 >= 0:
            _add_rows(rows, planes, y - r - 1, -ONE, r, X)
        for n in range(N):
            for x in range(X):
                out[n, y, x] = rows[n, x]
            for t in range(1, 2 * r + 1):
                for x in range(X):
                    out[n, y, x] += rows[n, x + t]


@njit(**HELPER)
def _replace(total, old, new):
    """total += new - old, over (n, Y, X)."""
    for n in range(total.shape[0]):
        for y in range(total.shape[1]):
            for x in range(total.shape[2]):
                total[n, y, x] += new[n, y, x] - old[n, y, x]


@njit(**HELPER)
def _warp_plane(moving, u, z, spans, out, gradient):
    """Plane z of moving(x + u(x)) and its derivative along (k, j, i), trilinear, within the spans."""
    Z, Y, X = moving.shape
    for y in range(Y):
        for x in range(spans[z, y, 0], spans[z, y, 1]):
            z0, z1, fz = split(np.float32(z) + u[0, z, y, x], Z)
            y0, y1, fy = split(np.float32(y) + u[1, z, y, x], Y)
            x0, x1, fx = split(np.float32(x) + u[2, z, y, x], X)
            a0, b0 = moving[z0, y0, x0], moving[z0, y1, x0]
            c0, d0 = moving[z1, y0, x0], moving[z1, y1, x0]
            da, db = moving[z0, y0, x1] - a0, moving[z0, y1, x1] - b0
            dc, dd = moving[z1, y0, x1] - c0, moving[z1, y1, x1] - d0
            a, b, c, d = a0 + da * fx, b0 + db * fx, c0 + dc * fx, d0 + dd * fx
            low, high = a + (b - a) * fy, c + (d - c) * fy
            out[y, x] = low + (high - low) * fz
            gradient[0, y, x] = high - low
            gradient[1, y, x] = (b - a) * (ONE - fz) + (d - c) * fz
            gradient[2, y, x] = (da * (ONE - fy) + db * fy) * (ONE - fz) + (dc * (ONE - fy) + dd * fy) * fz


@njit(**OPTIONS)
def fixed_moments(fixed, r, slabs, mean_sum, variance):
    """Window sums of the fixed image and of its squared deviation; windows of side 2r + 1, zeros outside."""
    Z, Y, X = fixed.shape
    n = np.float32((2 * r + 1) ** 3)
    for s in prange(slabs):
        start, stop = s * Z // slabs, (s + 1) * Z // slabs
        ring = np.zeros((2 * r + 1, 2, Y, X), np.float32)
        fresh = np.zeros((2, Y, X), np.float32)
        total = np.zeros((2, Y, X), np.float32)
        planes = np.empty((2, Y, X), np.float32)
        rows = np.empty((2, X + 2 * r), np.float32)
        for q in range(start - r, stop + r):
            if 0 <= q < Z:
                for y in range(Y):
                    for x in range(X):
                        planes[0, y, x] = fixed[q, y, x]
                        planes[1, y, x] = fixed[q, y, x] * fixed[q, y, x]
                _box_plane(planes, r, rows, fresh)
            else:
                fresh[:] = ZERO
            slot = (q + 2 * r + 1) % (2 * r + 1)
            _replace(total, ring[slot], fresh)
            ring[slot, :] = fresh
            z = q - r
            if start <= z < stop:
                for y in range(Y):
                    for x in range(X):
                        m = total[0, y, x]
                        mean_sum[z, y, x] = m
                        variance[z, y, x] = max(total[1, y, x] - m * m / n, ZERO)


@njit(**OPTIONS)
def lncc_force(fixed, moving, u, fixed_sum, fixed_variance, weight, r, epsilon, slabs, spans, force):
    """Gradient of the summed squared LNCC with respect to u, written to `force` (3, k, j, i); returns the sum.

    Both images are 0 outside the spans; windows centred there do not count, and `force` is not touched there.

    The analytic gradient of Avants et al. (Med Image Anal 2008): with window sums S of F, M, FF, MM, FM at every
    voxel, cc = cross^2 / (varF varM + eps), its derivative with respect to M(y) is a sum over the windows that
    contain y, so three further box sums give it. Everything is fused: a thread walks a slab of planes, warps one
    plane at a time, keeps 2r + 1 planes in rings and writes each force once.

    Args:
        weight: (k, j, i), what each window counts; of size 0: all count 1.
        r: window radius in voxels (side 2r + 1).
        slabs: how many threads share the volume; each recomputes 2r planes at its ends.
        epsilon: added to the product of the variances (sums over the window), keeps flat regions silent.
    """
    Z, Y, X = fixed.shape
    n = np.float32((2 * r + 1) ** 3)
    depth = 2 * r + 1
    weighted = weight.size > 0
    totals = np.zeros(slabs, np.float64)
    for s in prange(slabs):
        start, stop = s * Z // slabs, (s + 1) * Z // slabs
        warped = np.zeros((depth, Y, X), np.float32)
        gradient = np.zeros((depth, 3, Y, X), np.float32)
        ring = np.zeros((depth, 3, Y, X), np.float32)
        ring2 = np.zeros((depth, 3, Y, X), np.float32)
        sums = np.zeros((3, Y, X), np.float32)
        sums2 = np.zeros((3, Y, X), np.float32)
        planes = np.empty((3, Y, X), np.float32)
        fresh = np.zeros((3, Y, X), np.float32)
        rows = np.empty((3, X + 2 * r), np.float32)
        for q in range(start - 2 * r, stop + 2 * r):
            slot = (q + 4 * depth) % depth
            if 0 <= q < Z:
                _warp_plane(moving, u, q, spans, warped[slot], gradient[slot])
                planes[:] = ZERO
                for y in range(Y):
                    for x in range(spans[q, y, 0], spans[q, y, 1]):
                        m = warped[slot, y, x]
                        planes[0, y, x] = m
                        planes[1, y, x] = m * m
                        planes[2, y, x] = m * fixed[q, y, x]
                _box_plane(planes, r, rows, fresh)
            else:
                fresh[:] = ZERO
            _replace(sums, ring[slot], fresh)
            ring[slot, :] = fresh
            c = q - r
            if c < start - r:
                continue
            slot = (c + 4 * depth) % depth
            if 0 <= c < Z:
                inside = start <= c < stop
                planes[:] = ZERO
                for y in range(Y):
                    part = ZERO
                    for x in range(spans[c, y, 0], spans[c, y, 1]):
                        mean = sums[0, y, x] / n
                        cross = sums[2, y, x] - fixed_sum[c, y, x] * mean
                        variance = max(sums[1, y, x] - mean * sums[0, y, x], ZERO)
                        fv = fixed_variance[c, y, x]
                        scale = ONE / (fv * variance + epsilon)
                        w = weight[c, y, x] if weighted else ONE
                        ratio = w * cross * scale
                        a = ratio + ratio
                        b = a * cross * fv * scale
                        part += ratio * cross
                        planes[0, y, x] = a
                        planes[1, y, x] = b
                        planes[2, y, x] = b * mean - a * fixed_sum[c, y, x] / n
                    if inside:
                        totals[s] += part
                _box_plane(planes, r, rows, fresh)
            else:
                fresh[:] = ZERO
            _replace(sums2, ring2[slot], fresh)
            ring2[slot, :] = fresh
            z = c - r
            if start <= z < stop:
                slot = z % depth
                for y in range(Y):
                    for x in range(spans[z, y, 0], spans[z, y, 1]):
                        pull = fixed[z, y, x] * sums2[0, y, x] - warped[slot, y, x] * sums2[1, y, x] + sums2[2, y, x]
                        for k in range(3):
                            force[k, z, y, x] = pull * gradient[slot, k, y, x]
    return totals.sum()


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


@njit(**OPTIONS)
def adam(gradient, first, second, beta1, beta2, correction1, correction2, epsilon, spans, out):
    """Adam's direction (Kingma and Ba 2015) into `out`; moments updated in place; returns the largest step length."""
    Z, Y = gradient.shape[1:3]
    largest = np.zeros(Z, np.float32)
    for z in prange(Z):
        top = ZERO
        for y in range(Y):
            low, high = spans[z, y, 0], spans[z, y, 1]
            for k in range(3):
                for x in range(low, high):
                    g = gradient[k, z, y, x]
                    m = beta1 * first[k, z, y, x] + (ONE - beta1) * g
                    v = beta2 * second[k, z, y, x] + (ONE - beta2) * g * g
                    first[k, z, y, x] = m
                    second[k, z, y, x] = v
                    out[k, z, y, x] = m * correction1 / (np.sqrt(v * correction2) + epsilon)
            for x in range(low, high):
                a, b, c = out[0, z, y, x], out[1, z, y, x], out[2, z, y, x]
                top = max(top, a * a + b * b + c * c)
        largest[z] = top
    return np.sqrt(largest.max())

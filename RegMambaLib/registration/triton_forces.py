"""Triton kernels of the image forces: the squared local correlation and its gradient, and MIND-SSC. float32.

The mathematics are those of `lncc_kernels` (Avants et al., Med Image Anal 2008). Window sums are separable: one pass
per axis, 2 radius + 1 taps each (running sums would lose digits and cost the same memory traffic). The first pass
forms the products it sums, the third turns the sums into the coefficients a, b, c of the gradient, and the third pass
over those multiplies by the central differences of the warped image. Layout and sizes: `triton_fields`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_fields import displaced, interpolate, kernel, layer, near, only, slope, voxels


@kernel
def warp(moving, u, inside, out, n, depth, height, width, BLOCK: tl.constexpr):
    """out = moving(x + u(x)), trilinear, and 0 where not inside."""
    index, mask = voxels(n, BLOCK)
    here = only(inside, index, mask)
    value, _, _, _ = interpolate(moving, displaced(u, index, n, depth, height, width, here), here)
    tl.store(out + index, value, mask=mask)


@kernel
def sum_products(warped, fixed, out, n, size, stride, radius, BLOCK: tl.constexpr):
    """Sums along one axis of the warped image, its square and its product with the fixed one: out (3, k, j, i)."""
    index, mask = voxels(n, BLOCK)
    place = index // stride % size
    total, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for shift in range(-radius, radius + 1):
        m = near(warped, index, mask, place, shift, size, stride)
        total += m
        squares += m * m
        products += m * near(fixed, index, mask, place, shift, size, stride)
    tl.store(out + index, total, mask=mask)
    tl.store(layer(out, 1, n) + index, squares, mask=mask)
    tl.store(layer(out, 2, n) + index, products, mask=mask)


@kernel
def sum_along(volumes, out, n, size, stride, radius, BLOCK: tl.constexpr):
    """Sums of (c, k, j, i) along one axis, zeros outside. Grid: (blocks, c)."""
    index, mask = voxels(n, BLOCK)
    source, place = layer(volumes, tl.program_id(1), n), index // stride % size
    total = tl.zeros([BLOCK], tl.float32)
    for shift in range(-radius, radius + 1):
        total += near(source, index, mask, place, shift, size, stride)
    tl.store(layer(out, tl.program_id(1), n) + index, total, mask=mask)


@triton.jit
def sum_three(volumes, index, mask, place, n, size, stride, radius, BLOCK: tl.constexpr):
    """Sums of three volumes along one axis."""
    first, second = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    third = tl.zeros([BLOCK], tl.float32)
    for shift in range(-radius, radius + 1):
        first += near(volumes, index, mask, place, shift, size, stride)
        second += near(layer(volumes, 1, n), index, mask, place, shift, size, stride)
        third += near(layer(volumes, 2, n), index, mask, place, shift, size, stride)
    return first, second, third


@kernel
def coefficients(
    sums, fixed_sum, fixed_variance, weight, out, similarity,
    per_voxel, epsilon, n, size, stride, radius, BLOCK: tl.constexpr,
):  # fmt: skip
    """The last axis of the sums of `sum_products`, and from them a, b, c: what the windows add to the gradient.

    A window of weight w adds a F(y) - b M(y) + c to the derivative by M(y). `similarity` takes the sum of each block.
    """
    index, mask = voxels(n, BLOCK)
    total, squares, products = sum_three(sums, index, mask, index // stride % size, n, size, stride, radius, BLOCK)
    own_sum = tl.load(fixed_sum + index, mask=mask, other=0.0)
    own_variance = tl.load(fixed_variance + index, mask=mask, other=0.0)
    cross = products - own_sum * total * per_voxel + epsilon
    scale = 1 / (own_variance * (tl.maximum(squares - total * total * per_voxel, 0.0) + epsilon))
    ratio = tl.load(weight + index, mask=mask, other=0.0) * cross * scale
    a = 2 * ratio
    b = a * cross * scale * own_variance
    tl.store(out + index, a, mask=mask)
    tl.store(layer(out, 1, n) + index, b, mask=mask)
    tl.store(layer(out, 2, n) + index, (b * total - a * own_sum) * per_voxel, mask=mask)
    tl.store(similarity + tl.program_id(0), tl.sum(tl.where(mask, ratio * cross, 0.0), 0))


@kernel
def lncc_force(sums, fixed, warped, inside, out, n, size, stride, radius, depth, height, width, BLOCK: tl.constexpr):
    """The last axis of the sums of a, b, c, and the gradient with respect to u: out (3, k, j, i), 0 outside."""
    index, mask = voxels(n, BLOCK)
    here = only(inside, index, mask)
    a, b, c = sum_three(sums, index, here, index // stride % size, n, size, stride, radius, BLOCK)
    value = tl.load(warped + index, mask=here, other=0.0)
    pull = a * tl.load(fixed + index, mask=here, other=0.0) - b * value + c
    tl.store(out + index, pull * slope(warped, index, here, depth, height * width), mask=mask)
    tl.store(layer(out, 1, n) + index, pull * slope(warped, index, here, height, width), mask=mask)
    tl.store(layer(out, 2, n) + index, pull * slope(warped, index, here, width, 1), mask=mask)


@kernel
def channel_force(
    fixed, moving, u, weight, out, similarity, channels, n, depth, height, width, BLOCK: tl.constexpr
):  # fmt: skip
    """Downhill direction of the squared difference of (c, k, j, i) features; `similarity` takes minus its sums."""
    index, mask = voxels(n, BLOCK)
    where = displaced(u, index, n, depth, height, width, mask)
    loss, gz = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    gy, gx = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for channel in range(channels):
        value, dz, dy, dx = interpolate(layer(moving, channel, n), where, mask)
        gap = tl.load(layer(fixed, channel, n) + index, mask=mask, other=0.0) - value
        loss += gap * gap
        gz += gap * dz
        gy += gap * dy
        gx += gap * dx
    w = tl.load(weight + index, mask=mask, other=0.0)
    tl.store(out + index, w * gz, mask=mask)
    tl.store(layer(out, 1, n) + index, w * gy, mask=mask)
    tl.store(layer(out, 2, n) + index, w * gx, mask=mask)
    tl.store(similarity + tl.program_id(0), -tl.sum(w * loss, 0))

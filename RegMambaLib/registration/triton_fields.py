"""Triton kernels on displacements: smoothing, Adam, composition, and the interpolation that all share. float32.

Every program takes BLOCK voxels that follow each other in memory, whatever rows or planes they are on: any shape fills
the GPU, and neighbours along an axis are read again from the caches rather than from memory. Arrays are contiguous,
volumes (k, j, i) of `n` voxels with `depth`, `height`, `width` along k, j, i; a stack of them follows at steps of n.
A pass along an axis knows its `size` and its `stride`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def kernel(function: Callable[..., None]) -> Any:
    """`triton.jit`, with one compiled kernel for all sizes and addresses.

    That the first volume of a stack begins at a multiple of 16 bytes is of no use to those that follow, nor to
    neighbours; knowing it, Triton would give each thread four consecutive voxels and so scatter the lanes' loads.
    """
    return triton.jit(do_not_specialize=[name for name in inspect.signature(function).parameters if name != "BLOCK"])(
        function
    )


@triton.jit
def voxels(n, BLOCK: tl.constexpr):
    """The flat indices of this program's voxels and which of them exist."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return index, index < n


@triton.jit
def only(inside, index, mask):
    """The voxels of the mask that are inside; `inside` is a boolean volume."""
    return mask & (tl.load(inside + index, mask=mask, other=0) != 0)


@triton.jit
def layer(volumes, number, n):
    """Where one volume of a stack begins; 64-bit, since a stack may hold more voxels than 32 bits count."""
    return volumes + tl.cast(number, tl.int64) * n


@triton.jit
def near(volume, index, mask, place, shift, size, stride):
    """The volume `shift` voxels along an axis, 0 outside; `place` is the coordinate along it."""
    inside = mask & (place + shift >= 0) & (place + shift < size)
    return tl.load(volume + index + shift * stride, mask=inside, other=0.0)


@triton.jit
def slope(volume, index, mask, size, stride):
    """Central differences along an axis; one-sided at the border, 0 along an axis of one voxel."""
    place = index // stride % size
    before, after = tl.where(place > 0, 1, 0), tl.where(place < size - 1, 1, 0)
    high = tl.load(volume + index + after * stride, mask=mask, other=0.0)
    low = tl.load(volume + index - before * stride, mask=mask, other=0.0)
    return (high - low) / tl.maximum(before + after, 1).to(tl.float32)


@triton.jit
def split(position, size):
    """Lower voxel, upper voxel and fraction of positions; see `spatial.kernels.split`."""
    p = tl.minimum(tl.maximum(position, 0.0), tl.cast(size - 1, tl.float32))
    low = p.to(tl.int32)
    high = tl.where(position < 0, low, tl.minimum(low + 1, size - 1))
    return low, high, p - low.to(tl.float32)


@triton.jit
def cell(index, dz, dy, dx, depth, height, width):
    """The voxels and fractions around the positions index + (dz, dy, dx), for `gather` and `trilinear`."""
    row = index // width
    z0, z1, fz = split((row // height).to(tl.float32) + dz, depth)
    y0, y1, fy = split((row % height).to(tl.float32) + dy, height)
    x0, x1, fx = split((index % width).to(tl.float32) + dx, width)
    below, above = z0 * height, z1 * height
    return (below + y0) * width, (below + y1) * width, (above + y0) * width, (above + y1) * width, x0, x1, fz, fy, fx


@triton.jit
def gather(volume, where, mask):
    """The volume at the eight voxels of the cells `where`, x fastest."""
    row_a, row_b, row_c, row_d, x0, x1, _, _, _ = where
    return (
        tl.load(volume + row_a + x0, mask=mask, other=0),
        tl.load(volume + row_a + x1, mask=mask, other=0),
        tl.load(volume + row_b + x0, mask=mask, other=0),
        tl.load(volume + row_b + x1, mask=mask, other=0),
        tl.load(volume + row_c + x0, mask=mask, other=0),
        tl.load(volume + row_c + x1, mask=mask, other=0),
        tl.load(volume + row_d + x0, mask=mask, other=0),
        tl.load(volume + row_d + x1, mask=mask, other=0),
    )


@triton.jit
def trilinear(values, where):
    """What `gather` found, interpolated, and its slopes along z, y and x."""
    a0, a1, b0, b1, c0, c1, d0, d1 = values
    _, _, _, _, _, _, fz, fy, fx = where
    da, db, dc, dd = a1 - a0, b1 - b0, c1 - c0, d1 - d0
    a, b, c, d = a0 + da * fx, b0 + db * fx, c0 + dc * fx, d0 + dd * fx
    below, above = a + (b - a) * fy, c + (d - c) * fy
    along_y = (b - a) * (1 - fz) + (d - c) * fz
    along_x = (da * (1 - fy) + db * fy) * (1 - fz) + (dc * (1 - fy) + dd * fy) * fz
    return below + (above - below) * fz, above - below, along_y, along_x


@triton.jit
def interpolate(volume, where, mask):
    """The volume in the cells `where`, trilinear, and its slopes there; 0 where masked."""
    return trilinear(gather(volume, where, mask), where)


@triton.jit
def displaced(u, index, n, depth, height, width, mask):
    """The cells of the positions x + u(x)."""
    dz = tl.load(u + index, mask=mask, other=0.0)
    dy = tl.load(layer(u, 1, n) + index, mask=mask, other=0.0)
    dx = tl.load(layer(u, 2, n) + index, mask=mask, other=0.0)
    return cell(index, dz, dy, dx, depth, height, width)


@kernel
def smooth_along(field, taps, whole, inside, out, n, size, stride, radius, BLOCK: tl.constexpr):
    """One axis of a separable smoothing of (c, k, j, i); borders repeat. Grid: (blocks, c).

    The last axis is given `inside`, and `whole` before any smoothing, which is kept elsewhere; the others have None.
    """
    index, mask = voxels(n, BLOCK)
    source, place = layer(field, tl.program_id(1), n), index // stride % size
    here = mask if inside is None else only(inside, index, mask)
    total = tl.zeros([BLOCK], tl.float32)
    for shift in range(-radius, radius + 1):
        step = tl.minimum(tl.maximum(place + shift, 0), size - 1) - place
        total += tl.load(taps + radius + shift) * tl.load(source + index + step * stride, mask=here, other=0.0)
    if inside is not None:
        total += tl.load(layer(whole, tl.program_id(1), n) + index, mask=mask & ~here, other=0.0)
    tl.store(layer(out, tl.program_id(1), n) + index, total, mask=mask)


@kernel
def adam(
    gradient, first, second, floor, out, largest, n, beta1, beta2, correction1, correction2, BLOCK: tl.constexpr
):  # fmt: skip
    """Adam's direction of (3, k, j, i); moments in place. `largest` takes each block's largest squared length."""
    index, mask = voxels(n, BLOCK)
    length = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(3):
        g = tl.load(gradient + layer(0, k, n) + index, mask=mask, other=0.0)
        length += g * g
    v = beta2 * tl.load(second + index, mask=mask, other=0.0) + (1 - beta2) * length
    tl.store(second + index, v, mask=mask)
    scale = correction1 / (tl.sqrt(v * correction2) + tl.load(floor))
    square = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(3):
        at = layer(0, k, n) + index
        g = tl.load(gradient + at, mask=mask, other=0.0)
        m = beta1 * tl.load(first + at, mask=mask, other=0.0) + (1 - beta1) * g
        tl.store(first + at, m, mask=mask)
        tl.store(out + at, m * scale, mask=mask)
        square += tl.where(mask, m * scale * m * scale, 0.0)
    tl.store(largest + tl.program_id(0), tl.max(square, 0))


@kernel
def compose(u, direction, largest, out, length, n, depth, height, width, BLOCK: tl.constexpr):
    """out = v + u(x + v) with v = direction * length / largest, or 0 where the largest is 0."""
    index, mask = voxels(n, BLOCK)
    top = tl.load(largest)
    scale = tl.where(top > 0, length / tl.where(top > 0, top, 1.0), 0.0)
    dz = scale * tl.load(direction + index, mask=mask, other=0.0)
    dy = scale * tl.load(layer(direction, 1, n) + index, mask=mask, other=0.0)
    dx = scale * tl.load(layer(direction, 2, n) + index, mask=mask, other=0.0)
    where = cell(index, dz, dy, dx, depth, height, width)
    z, _, _, _ = interpolate(u, where, mask)
    y, _, _, _ = interpolate(layer(u, 1, n), where, mask)
    x, _, _, _ = interpolate(layer(u, 2, n), where, mask)
    tl.store(out + index, z + dz, mask=mask)
    tl.store(layer(out, 1, n) + index, y + dy, mask=mask)
    tl.store(layer(out, 2, n) + index, x + dx, mask=mask)

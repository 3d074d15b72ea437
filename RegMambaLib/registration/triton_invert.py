"""Triton kernels of repair: the determinants that tell folds, and the inverse of a displacement. float32.

They do what the numba kernels `spatial.jacobian_kernels.jacobian` (strict) and `spatial.kernels.seed_inverse` and
`invert` do, whose docstrings name the sources of the methods. Arrays and arguments are as in triton_fields.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_fields import cell, interpolate, kernel, layer, voxels


@triton.jit
def determinant(p0, p1, p2, q0, q1, q2, r0, r1, r2):
    """Of the matrix with the columns (or the rows) p, q, r."""
    return p0 * (q1 * r2 - r1 * q2) + p1 * (q2 * r0 - r2 * q0) + p2 * (q0 * r1 - r0 * q1)


@triton.jit
def differences(volume, index, mask, size, stride, added):
    """The volume here minus before and after minus here, each + `added`; at the border both are the one that exists."""
    place = index // stride % size
    here = tl.load(volume + index, mask=mask, other=0.0)
    before = tl.load(volume + index - stride, mask=mask & (place > 0), other=0.0)
    after = tl.load(volume + index + stride, mask=mask & (place < size - 1), other=0.0)
    back, ahead = here - before, after - here
    return added + tl.where(place > 0, back, ahead), added + tl.where(place < size - 1, ahead, back)


@triton.jit
def sides(u, index, mask, n, size, stride, z, y, x):
    """Both differences along one axis of u's components, those of the identity (z, y, x) included."""
    z0, z1 = differences(u, index, mask, size, stride, z)
    y0, y1 = differences(layer(u, 1, n), index, mask, size, stride, y)
    x0, x1 = differences(layer(u, 2, n), index, mask, size, stride, x)
    return z0, y0, x0, z1, y1, x1


@kernel
def smallest_determinants(u, out, n, depth, height, width, BLOCK: tl.constexpr):
    """The smallest of the central and the eight one-sided determinants of id + u; every axis has >= 2 voxels."""
    index, mask = voxels(n, BLOCK)
    a0, a1, a2, b0, b1, b2 = sides(u, index, mask, n, depth, height * width, 1.0, 0.0, 0.0)
    c0, c1, c2, d0, d1, d2 = sides(u, index, mask, n, height, width, 0.0, 1.0, 0.0)
    e0, e1, e2, f0, f1, f2 = sides(u, index, mask, n, width, 1, 0.0, 0.0, 1.0)
    p0, p1, p2 = 0.5 * (a0 + b0), 0.5 * (a1 + b1), 0.5 * (a2 + b2)
    q0, q1, q2 = 0.5 * (c0 + d0), 0.5 * (c1 + d1), 0.5 * (c2 + d2)
    r0, r1, r2 = 0.5 * (e0 + f0), 0.5 * (e1 + f1), 0.5 * (e2 + f2)
    smallest = determinant(p0, p1, p2, q0, q1, q2, r0, r1, r2)
    for side in tl.static_range(8):
        if side % 2 == 0:
            p0, p1, p2 = a0, a1, a2
        else:
            p0, p1, p2 = b0, b1, b2
        if side // 2 % 2 == 0:
            q0, q1, q2 = c0, c1, c2
        else:
            q0, q1, q2 = d0, d1, d2
        if side // 4 == 0:
            r0, r1, r2 = e0, e1, e2
        else:
            r0, r1, r2 = f0, f1, f2
        smallest = tl.minimum(smallest, determinant(p0, p1, p2, q0, q1, q2, r0, r1, r2))
    tl.store(out + index, smallest, mask=mask)


@kernel
def land(u, landed, n, depth, height, width, BLOCK: tl.constexpr):
    """`landed` (int32, -1 before) takes at every voxel the last of those that u leads there, by its flat index."""
    index, mask = voxels(n, BLOCK)
    row = index // width
    z = tl.floor((row // height).to(tl.float32) + tl.load(u + index, mask=mask, other=0.0) + 0.5)
    y = tl.floor((row % height).to(tl.float32) + tl.load(layer(u, 1, n) + index, mask=mask, other=0.0) + 0.5)
    x = tl.floor((index % width).to(tl.float32) + tl.load(layer(u, 2, n) + index, mask=mask, other=0.0) + 0.5)
    there = mask & (z >= 0) & (z < depth) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    z, y, x = tl.where(there, z, 0.0), tl.where(there, y, 0.0), tl.where(there, x, 0.0)
    at = (z.to(tl.int32) * height + y.to(tl.int32)) * width + x.to(tl.int32)
    tl.atomic_max(landed + at, index, mask=there, sem="relaxed")


@kernel
def seed(u, landed, out, n, width, BLOCK: tl.constexpr):
    """A rough inverse: -u of the voxel that landed here, or of that which landed nearest before in the row.

    Where none did, -u of the voxel itself; numba looks in other rows then. A displacement that ends in 0 at the border
    has no such voxels.
    """
    index, mask = voxels(n, BLOCK)
    place = index % width
    source = tl.load(landed + index, mask=mask, other=0)
    shift = tl.full([BLOCK], 0, tl.int32)
    searching = (source < 0) & (place > 0)
    while tl.max(searching.to(tl.int32), 0) > 0:
        shift += 1
        source = tl.where(searching, tl.load(landed + index - shift, mask=searching, other=-1), source)
        searching = (source < 0) & (shift < place)
    source = tl.where(source < 0, index, source)
    for k in tl.static_range(3):
        tl.store(layer(out, k, n) + index, -tl.load(layer(u, k, n) + source, mask=mask, other=0.0), mask=mask)


@kernel
def invert(u, v, error, tolerance, iterations, n, depth, height, width, BLOCK: tl.constexpr):
    """v with v(x) + u(x + v(x)) = 0 by damped Newton steps, started from `v`; `error` takes the last residual.

    A program goes on until the last of its voxels has come below the tolerance; the others wait unchanged.
    """
    index, mask = voxels(n, BLOCK)
    vz = tl.load(v + index, mask=mask, other=0.0)
    vy = tl.load(layer(v, 1, n) + index, mask=mask, other=0.0)
    vx = tl.load(layer(v, 2, n) + index, mask=mask, other=0.0)
    bz, by, bx = vz, vy, vx
    none = tl.zeros([BLOCK], tl.float32)
    sz, sy, sx = none, none, none
    best, damping = none + 1e30, none + 1.0
    left, going = iterations, mask
    while (left > 0) & (tl.max(going.to(tl.int32), 0) > 0):
        left -= 1
        where = cell(index, vz, vy, vx, depth, height, width)
        rz, zz, zy, zx = interpolate(u, where, going)
        ry, yz, yy, yx = interpolate(layer(u, 1, n), where, going)
        rx, xz, xy, xx = interpolate(layer(u, 2, n), where, going)
        rz, ry, rx = rz + vz, ry + vy, rx + vx
        size = rz * rz + ry * ry + rx * rx
        better = going & (size < best)
        best = tl.where(better, size, best)
        bz, by, bx = tl.where(better, vz, bz), tl.where(better, vy, by), tl.where(better, vx, bx)
        # The next step: Newton's, or the residual where the cell is nearly folded.
        zz, yy, xx = zz + 1, yy + 1, xx + 1
        det = determinant(zz, zy, zx, yz, yy, yx, xz, xy, xx)
        safe = det > 1e-4
        over = 1 / tl.where(safe, det, 1.0)
        nz = tl.where(safe, over * determinant(rz, zy, zx, ry, yy, yx, rx, xy, xx), rz)
        ny = tl.where(safe, over * determinant(zz, rz, zx, yz, ry, yx, xz, rx, xx), ry)
        nx = tl.where(safe, over * determinant(zz, zy, rz, yz, yy, ry, xz, xy, rx), rx)
        largest = tl.maximum(tl.maximum(tl.abs(nz), tl.abs(ny)), tl.abs(nx))
        damping = tl.where(better, tl.where(largest > 2, 2 / tl.maximum(largest, 2.0), 1.0), 0.5 * damping)
        sz, sy, sx = tl.where(better, nz, sz), tl.where(better, ny, sy), tl.where(better, nx, sx)
        vz, vy, vx = bz - damping * sz, by - damping * sy, bx - damping * sx
        going &= best >= tolerance * tolerance
    tl.store(v + index, bz, mask=mask)
    tl.store(layer(v, 1, n) + index, by, mask=mask)
    tl.store(layer(v, 2, n) + index, bx, mask=mask)
    tl.store(error + index, tl.sqrt(best), mask=mask)

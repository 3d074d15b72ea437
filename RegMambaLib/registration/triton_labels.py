"""Triton kernels of label guidance: the soft Dice of all labels and its gradient. Layout: `triton_fields`.

A label's share of a moving voxel is the trilinear interpolation of 1 where the label is and 0 elsewhere. Label maps are
int32 (k, j, i) with classes from 0, which is background and not counted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_fields import displaced, gather, kernel, layer, only, trilinear, voxels


@kernel
def sum_labels(fixed, moving, u, inside, sums, labels, n, depth, height, width, BLOCK: tl.constexpr):
    """Sums of each block inside, for every label but 0: sums (2, labels, blocks), the overlap and the moving share.

    Every sum has a fixed order: no atomics, which would moreover queue for the few addresses that there are.
    """
    index, mask = voxels(n, BLOCK)
    here = only(inside, index, mask)
    own = tl.load(fixed + index, mask=here, other=0)
    where = displaced(u, index, n, depth, height, width, here)
    a0, a1, b0, b1, c0, c1, d0, d1 = gather(moving, where, here)
    for label in range(1, labels):
        low = is_label(a0, label), is_label(a1, label), is_label(b0, label), is_label(b1, label)
        high = is_label(c0, label), is_label(c1, label), is_label(d0, label), is_label(d1, label)
        share, _, _, _ = trilinear(low + high, where)
        at = label * tl.num_programs(0) + tl.program_id(0)
        tl.store(sums + at, tl.sum(tl.where(own == label, share, 0.0), 0))
        tl.store(sums + labels * tl.num_programs(0) + at, tl.sum(share, 0))


@triton.jit
def is_label(values, label):
    return (values == label).to(tl.float32)


@kernel
def label_force(fixed, moving, u, inside, gain, loss, out, n, depth, height, width, BLOCK: tl.constexpr):
    """Slopes of what the moving labels earn: loss[label] each, and gain[label] more on the same fixed label."""
    index, mask = voxels(n, BLOCK)
    here = only(inside, index, mask)
    own = tl.load(fixed + index, mask=here, other=0)
    where = displaced(u, index, n, depth, height, width, here)
    a0, a1, b0, b1, c0, c1, d0, d1 = gather(moving, where, here)
    low = pull(a0, own, gain, loss), pull(a1, own, gain, loss), pull(b0, own, gain, loss), pull(b1, own, gain, loss)
    high = pull(c0, own, gain, loss), pull(c1, own, gain, loss), pull(d0, own, gain, loss), pull(d1, own, gain, loss)
    _, along_z, along_y, along_x = trilinear(low + high, where)
    tl.store(out + index, along_z, mask=mask)
    tl.store(layer(out, 1, n) + index, along_y, mask=mask)
    tl.store(layer(out, 2, n) + index, along_x, mask=mask)


@triton.jit
def pull(label, own, gain, loss):
    return tl.load(loss + label) + tl.where(label == own, tl.load(gain + label), 0.0)

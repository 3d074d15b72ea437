"""The depthwise causal convolution along traversals, and its gradient, as one Triton kernel on canonical tokens.

Visited in reverse, the tokens that an output depends on are its own and the next ones, which is also how the gradient
by an input depends on the outputs in the order visited. So `convolve` looks ahead only; the host hands it the reversed
traversals for the values and the traversals themselves for the gradient by x.
"""

# mypy: disable-error-code="assignment"
# Triton unrolls the loops in which tuples grow; to mypy such a tuple changes its type.

from __future__ import annotations

import triton
import triton.language as tl

from RegMambaLib.scan.triton_kernels import advance, locate, read_plan


@triton.jit(do_not_specialize=["length", "groups", "x_groups"])
def convolve(
    x, weight, bias, plans, gout, y, gweight, gbias,
    length, channels, groups, x_groups,
    SILU: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y_q = silu(bias + sum_j weight[TAPS - 1 - j] x_(q + j)) over positions q of ROWS tokens and WIDTH channels.

    x (b, 1 or G, L, E); weight (G, TAPS, E); bias (G, E) or None; y (b, G, L, E); plans (G, PLAN). With the gradient by
    y, gout (b, G, L, E), y receives that by the sum before silu instead, and gweight (b, G, blocks, TAPS, E), gbias (b,
    G, blocks, E) those by the parameters from each block of rows. Grid: (blocks, channel blocks, b * G).
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    place = direction * tl.num_programs(0) + tl.program_id(0)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    e_inside = e < channels
    plan = read_plan(plans, group)
    x += (image * x_groups + group % x_groups) * length * channels
    y += direction * length * channels
    own, i1, i2 = locate(position, plan)
    here = (position < length)[:, None] & e_inside[None, :]
    cells = own.to(tl.int64)[:, None] * channels + e[None, :]
    value = tl.zeros([ROWS, WIDTH], tl.float32)
    if bias is not None:
        value += tl.load(bias + group * channels + e, mask=e_inside, other=0.0).to(tl.float32)[None, :]
    token, inputs = own, ()
    for j in tl.static_range(TAPS):
        ahead = (position + j < length)[:, None] & e_inside[None, :]
        tap = tl.load(weight + (group * TAPS + TAPS - 1 - j) * channels + e, mask=e_inside, other=0.0).to(tl.float32)
        source = tl.load(x + token.to(tl.int64)[:, None] * channels + e[None, :], mask=ahead, other=0.0).to(tl.float32)
        value += tap[None, :] * source
        inputs += (source,)
        token, i1, i2 = advance(token, i1, i2, plan)
    if gout is None:
        tl.store(y + cells, value * tl.sigmoid(value) if SILU else value, mask=here)
    else:
        slope = tl.load(gout + direction * length * channels + cells, mask=here, other=0.0).to(tl.float32)
        if SILU:
            share = tl.sigmoid(value)
            slope *= share * (1 + value * (1 - share))
        tl.store(y + cells, slope, mask=here)
        for j in tl.static_range(TAPS):
            tl.store(
                gweight + (place * TAPS + TAPS - 1 - j) * channels + e, tl.sum(slope * inputs[j], 0), mask=e_inside
            )
        if gbias is not None:
            tl.store(gbias + place * channels + e, tl.sum(slope, 0), mask=e_inside)

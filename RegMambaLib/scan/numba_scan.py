"""The selective scan and its gradient as numba kernels on canonical tokens, float32.

A task walks one direction of one image for its share of the channels. It takes `CHUNK` tokens in the order visited and
WIDTH channels at a time into small buffers that stay in the cache, works on them there, one state after the other, with
the channels side by side in `Lanes`, and scatters the result. The states that enter each chunk are kept for the
gradient, which recomputes those inside a chunk; memory is that of the outputs plus N / CHUNK of it.

Arrays: u (b, G or 1, L, E); delta, y and their gradients (b, G, L, E); A (G, E, N); B, C (b, G, L, N); D, bias (G, E)
or with no rows when absent; plans (G, 7) from `Traversal.index_plan`; states (b, G, chunks, blocks, N, WIDTH), where a
block is WIDTH channels, the last one padded. The blocks of a direction are shared out over `parts` tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from RegMambaLib.scan.numba_lanes import (
    WIDTH,
    aligned_rows,
    load,
    load_at,
    prefetch_at,
    spread,
    store,
    store_at,
)
from RegMambaLib.scan.numba_math import exp, softplus

CHUNK = 64  # a multiple of WIDTH
# Infinities and NaN keep their meaning; numpy's error model, since checks for division by zero prevent
# vectorisation.
OPTIONS: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"},
    "error_model": "numpy",
    "cache": True,
}
_f4 = np.float32


@njit(**OPTIONS)
def fill_tokens(first, count, plan, tokens):
    """tokens[i] = canonical index of the (first + i)-th token that the plan visits."""
    inner = plan[2] * plan[3]
    i0 = first // inner
    i1 = (first - i0 * inner) // plan[3]
    i2 = first - i0 * inner - i1 * plan[3]
    for i in range(count):
        tokens[i] = plan[0] + i0 * plan[4] + i1 * plan[5] + i2 * plan[6]
        i2 += 1
        if i2 == plan[3]:
            i2 = 0
            i1 += 1
            if i1 == plan[2]:
                i1 = 0
                i0 += 1


@njit(**OPTIONS)
def gather(source, tokens, count, low, high, rows):
    """rows[i, :high-low] = source[tokens[i], low:high]."""
    for i in range(count):
        row, given = rows[i], source[tokens[i], low:high]
        for e in range(given.size):
            row[e] = given[e]


@njit(**OPTIONS)
def scatter(rows, tokens, count, low, high, target):
    """target[tokens[i], low:high] = rows[i, :high-low]."""
    for i in range(count):
        row, place = rows[i], target[tokens[i], low:high]
        for e in range(place.size):
            place[e] = row[e]


@njit(**OPTIONS)
def gather_block(source, tokens, count, low, rows):
    """As `gather`, of the block of channels that begins at `low`; zeros past the last channel."""
    if low + WIDTH <= source.shape[1]:
        for i in range(count):
            store(rows, i, load_at(source, tokens[i], low))
    else:
        rows[:count] = _f4(0)
        gather(source, tokens, count, low, source.shape[1], rows)


@njit(**OPTIONS)
def scatter_block(rows, tokens, count, low, target):
    if low + WIDTH <= target.shape[1]:
        for i in range(count):
            store_at(target, tokens[i], low, load(rows, i))
    else:
        scatter(rows, tokens, count, low, target.shape[1], target)


@njit(**OPTIONS)
def prefetch(source, tokens, low, first, last):
    """Has the block of the tokens from `first` to before `last` fetched while the caller computes."""
    for i in range(first, last):
        prefetch_at(source, tokens[i], low)


@njit(**OPTIONS)
def gather_columns(source, tokens, count, columns):
    """columns[n, i] = source[tokens[i], n]."""
    for i in range(count):
        given = source[tokens[i]]
        for n in range(given.size):
            columns[n, i] = given[n]


@njit(**OPTIONS)
def scatter_columns(columns, tokens, count, target):
    """target[tokens[i], n] = columns[n, i]."""
    for i in range(count):
        place = target[tokens[i]]
        for n in range(place.size):
            place[n] = columns[n, i]


@njit(**OPTIONS)
def blocks_of(values, blocks):
    """One value per channel, or none for zeros, as (blocks, WIDTH)."""
    rows = aligned_rows(blocks)
    for e in range(values.size):
        rows[e // WIDTH, e % WIDTH] = values[e]
    return rows


@njit(**OPTIONS)
def rates_of(A, order):
    """A (E, N) as (blocks * order, WIDTH), zeros where there are fewer channels or states."""
    rows = aligned_rows((A.shape[0] + WIDTH - 1) // WIDTH * order)
    for e in range(A.shape[0]):
        for n in range(A.shape[1]):
            rows[e // WIDTH * order + n, e % WIDTH] = A[e, n]
    return rows


@njit(**OPTIONS)
def _forward_state(count, rate, entering, steps, drive, b, c, out):
    """One state of a block through one chunk: adds to out, returns the state that leaves."""
    h = entering
    for t in range(count):
        h = exp(load(steps, t) * rate) * h + load(drive, t) * spread(b, t)
        store(out, t, load(out, t) + h * spread(c, t))
    return h


@njit(**OPTIONS)
def _forward_task(u, delta, A, B, C, D, bias, use_softplus, plan, first_block, last_block, y, states):
    """Blocks of channels of one direction. states (chunks, blocks, N, WIDTH) or no chunks."""
    length, channels = delta.shape
    order = A.shape[1]
    blocks = (channels + WIDTH - 1) // WIDTH
    tokens, following = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    steps, x, out = aligned_rows(CHUNK), aligned_rows(CHUNK), aligned_rows(CHUNK)
    b, c = np.empty((order, CHUNK), _f4), np.empty((order, CHUNK), _f4)
    rates, state = rates_of(A, order), aligned_rows(blocks * order)
    offsets, skips = blocks_of(bias, blocks), blocks_of(D, blocks)
    fill_tokens(0, min(CHUNK, length), plan, following)
    for first in range(0, length, CHUNK):
        count = min(CHUNK, length - first)
        ahead = min(CHUNK, length - first - count)
        tokens, following = following, tokens
        fill_tokens(first + count, ahead, plan, following)
        gather_columns(B, tokens, count, b)
        gather_columns(C, tokens, count, c)
        for block in range(first_block, last_block):
            low = block * WIDTH
            gather_block(delta, tokens, count, low, steps)
            gather_block(u, tokens, count, low, x)
            offset, skip = load(offsets, block), load(skips, block)
            for t in range(count):
                step, token = load(steps, t) + offset, load(x, t)
                if use_softplus:
                    step = softplus(step)
                store(steps, t, step)
                store(x, t, step * token)
                store(out, t, skip * token)
            for n in range(order):
                row = block * order + n
                begin, end = n * ahead // order, (n + 1) * ahead // order
                prefetch(delta, following, low, begin, end)
                prefetch(u, following, low, begin, end)
                if block == first_block:
                    prefetch(B, following, 0, begin, end)
                    prefetch(C, following, 0, begin, end)
                h = load(state, row)
                if states.shape[0] > 0:
                    store(states[first // CHUNK, block], n, h)
                store(state, row, _forward_state(count, load(rates, row), h, steps, x, b[n], c[n], out))
            scatter_block(out, tokens, count, low, y)


@njit(parallel=True, **OPTIONS)
def scan_forward(u, delta, A, B, C, D, bias, use_softplus, plans, parts, y, states):
    """Writes y and, where `states` has room for them, the states that enter each chunk."""
    images, directions, _, channels = delta.shape
    blocks = (channels + WIDTH - 1) // WIDTH
    for task in prange(images * directions * parts):
        part = task % parts
        g = (task // parts) % directions
        image = task // (parts * directions)
        _forward_task(
            u[image, g if u.shape[1] > 1 else 0],
            delta[image, g],
            A[g],
            B[image, g],
            C[image, g],
            D[g] if D.shape[0] > 0 else D.ravel(),
            bias[g] if bias.shape[0] > 0 else bias.ravel(),
            use_softplus,
            plans[g],
            part * blocks // parts,
            (part + 1) * blocks // parts,
            y[image, g],
            states[image, g] if states.shape[0] > 0 else states.reshape((0, *states.shape[3:])),
        )

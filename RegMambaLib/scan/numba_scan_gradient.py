"""The gradient of the selective scan as numba kernels; see `numba_scan`, whose layout of work and arrays it shares.

Chunks are visited from the last to the first. The states inside a chunk are recomputed from the one that enters it,
then the gradient runs through it backwards. Two states go together, so that what they share is loaded once and one
works while the other waits for the result before; an odd number of states is padded by one whose rate, B and C are 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from RegMambaLib.scan.numba_lanes import WIDTH, aligned_rows, load, pair_sums, spread, store
from RegMambaLib.scan.numba_math import exp, sigmoid, softplus
from RegMambaLib.scan.numba_scan import (
    CHUNK,
    OPTIONS,
    blocks_of,
    fill_tokens,
    gather_block,
    gather_columns,
    prefetch,
    rates_of,
    scatter_block,
    scatter_columns,
)

_f4 = np.float32
_SECOND = CHUNK + 1  # where the second state of a pair begins in `history`


@njit(**OPTIONS)
def _recompute_pair(count, n, row, rates, history, steps, drive, b, decay):
    """The decays of a chunk, and in history[t] the state before token t, in history[count] the last.

    history holds the states that enter. The second state's rows begin at CHUNK in decay, at _SECOND in history.
    """
    rate0, rate1, b0, b1 = load(rates, row), load(rates, row + 1), b[n], b[n + 1]
    h0, h1 = load(history, 0), load(history, _SECOND)
    for t in range(count):
        step, push = load(steps, t), load(drive, t)
        decay0, decay1 = exp(step * rate0), exp(step * rate1)
        h0, h1 = decay0 * h0 + push * spread(b0, t), decay1 * h1 + push * spread(b1, t)
        store(decay, t, decay0)
        store(decay, CHUNK + t, decay1)
        store(history, t + 1, h0)
        store(history, _SECOND + t + 1, h1)


@njit(**OPTIONS)
def _reverse_pair(
    count, n, row, rates, adjoint, grates, steps, drive, b, c, gout, decay, history, gsteps, gdrive, gbs, gcs
):
    """Gradient of `_forward_state` for two states, which share what is loaded and added to.

    Adds to gsteps (through exp alone), gdrive and grates; adjoint holds the gradients by the states that leave, on
    return by those that enter; gbs[t] and gcs[t] are the terms of the gradients by b[t] and c[t], the second state's
    CHUNK rows later. decay and history are as `_recompute_pair` left them.
    """
    rate0, lam0, grate0 = load(rates, row), load(adjoint, row), load(grates, row)
    rate1, lam1, grate1 = load(rates, row + 1), load(adjoint, row + 1), load(grates, row + 1)
    b0, c0, b1, c1 = b[n], c[n], b[n + 1], c[n + 1]
    after0, after1 = load(history, count), load(history, _SECOND + count)
    for back in range(count):
        t = count - 1 - back
        gy, step, push = load(gout, t), load(steps, t), load(drive, t)
        before0, before1 = load(history, t), load(history, _SECOND + t)
        g0, g1 = lam0 + gy * spread(c0, t), lam1 + gy * spread(c1, t)
        store(gbs, t, g0 * push)
        store(gcs, t, gy * after0)
        store(gbs, CHUNK + t, g1 * push)
        store(gcs, CHUNK + t, gy * after1)
        store(gdrive, t, load(gdrive, t) + g0 * spread(b0, t) + g1 * spread(b1, t))
        lam0, lam1 = g0 * load(decay, t), g1 * load(decay, CHUNK + t)
        through0, through1 = lam0 * before0, lam1 * before1
        store(gsteps, t, load(gsteps, t) + through0 * rate0 + through1 * rate1)
        grate0, grate1 = grate0 + through0 * step, grate1 + through1 * step
        after0, after1 = before0, before1
    store(adjoint, row, lam0)
    store(adjoint, row + 1, lam1)
    store(grates, row, grate0)
    store(grates, row + 1, grate1)


@njit(**OPTIONS)
def _four_sums(rows, i):
    """Four lanes each with a part of the sum of rows[i], the next four of rows[i + 1] and so on."""
    return pair_sums(
        pair_sums(load(rows, i), load(rows, i + 1)),
        pair_sums(load(rows, i + 2), load(rows, i + 3)),
    )


@njit(**OPTIONS)
def _add_sums(rows, sums, first):
    """sums.ravel()[first * WIDTH + t] += the sum of rows[t], for all rows."""
    for k in range(rows.shape[0] // WIDTH):
        i = k * WIDTH
        lower = pair_sums(_four_sums(rows, i), _four_sums(rows, i + 4))
        upper = pair_sums(_four_sums(rows, i + 8), _four_sums(rows, i + 12))
        store(sums, first + k, load(sums, first + k) + pair_sums(lower, upper))


@njit(**OPTIONS)
def _open_block(count, offset, use_softplus, raw, x, steps, drive):
    """raw: the given delta, on return with its bias; steps: the time steps; drive = steps * x."""
    for t in range(count):
        step = load(raw, t) + offset
        store(raw, t, step)
        if use_softplus:
            step = softplus(step)
        store(steps, t, step)
        store(drive, t, step * load(x, t))


@njit(**OPTIONS)
def _close_block(count, block, skip, use_softplus, raw, x, steps, gout, gsteps, gdrive, gskips, goffsets):
    """The terms outside the recurrence: on return gsteps is the gradient by the given delta and gdrive that by u."""
    gskip, goffset = load(gskips, block), load(goffsets, block)
    for t in range(count):
        token, gy, push = load(x, t), load(gout, t), load(gdrive, t)
        gstep = load(gsteps, t) + push * token
        if use_softplus:
            gstep = gstep * sigmoid(load(raw, t))
        goffset = goffset + gstep
        gskip = gskip + gy * token
        store(gsteps, t, gstep)
        store(gdrive, t, push * load(steps, t) + skip * gy)
    store(gskips, block, gskip)
    store(goffsets, block, goffset)


@njit(**OPTIONS)
def _backward_task(
    u,
    delta,
    A,
    B,
    C,
    D,
    bias,
    use_softplus,
    plan,
    first_block,
    last_block,
    states,
    gy,
    gu,
    gdelta,
    gA,
    gB,
    gC,
    gD,
    gbias,
):
    """Blocks of channels of one direction; no array has its image and direction."""
    length, channels = delta.shape
    given = A.shape[1]
    order = given + given % 2
    blocks = (channels + WIDTH - 1) // WIDTH
    tokens, following = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    raw, x, gout = aligned_rows(CHUNK), aligned_rows(CHUNK), aligned_rows(CHUNK)
    steps, drive, gsteps, gdrive = aligned_rows(CHUNK), aligned_rows(CHUNK), aligned_rows(CHUNK), aligned_rows(CHUNK)
    history, decay = aligned_rows(2 * _SECOND), aligned_rows(2 * CHUNK)
    # Rows past the end of a short chunk are added up too, into sums that nobody reads.
    gbs, gcs = aligned_rows(2 * CHUNK), aligned_rows(2 * CHUNK)
    b, c = np.zeros((order, CHUNK), _f4), np.zeros((order, CHUNK), _f4)
    gb, gc = aligned_rows(order * CHUNK // WIDTH), aligned_rows(order * CHUNK // WIDTH)
    rates = rates_of(A, order)
    grates, adjoint = aligned_rows(blocks * order), aligned_rows(blocks * order)
    offsets, skips = blocks_of(bias, blocks), blocks_of(D, blocks)
    goffsets, gskips = aligned_rows(blocks), aligned_rows(blocks)
    final = (length - 1) // CHUNK * CHUNK
    fill_tokens(final, length - final, plan, following)
    for first in range(final, -1, -CHUNK):
        count, ahead = min(CHUNK, length - first), min(CHUNK, first)
        tokens, following = following, tokens
        fill_tokens(first - ahead, ahead, plan, following)
        gather_columns(B, tokens, count, b)
        gather_columns(C, tokens, count, c)
        gb[:] = _f4(0)
        gc[:] = _f4(0)
        for block in range(first_block, last_block):
            low = block * WIDTH
            entering = states[first // CHUNK, block]
            gather_block(delta, tokens, count, low, raw)
            gather_block(u, tokens, count, low, x)
            gather_block(gy, tokens, count, low, gout)
            _open_block(count, load(offsets, block), use_softplus, raw, x, steps, drive)
            gsteps[:] = _f4(0)
            gdrive[:] = _f4(0)
            for n in range(0, order, 2):
                begin, end = n * ahead // order, (n + 2) * ahead // order
                prefetch(delta, following, low, begin, end)
                prefetch(u, following, low, begin, end)
                prefetch(gy, following, low, begin, end)
                if block == first_block:
                    prefetch(B, following, 0, begin, end)
                    prefetch(C, following, 0, begin, end)
                row = block * order + n
                store(history, 0, load(entering, n))
                if n + 1 < given:
                    store(history, _SECOND, load(entering, n + 1))
                else:
                    history[_SECOND] = _f4(0)
                _recompute_pair(count, n, row, rates, history, steps, drive, b, decay)
                _reverse_pair(
                    count,
                    n,
                    row,
                    rates,
                    adjoint,
                    grates,
                    steps,
                    drive,
                    b,
                    c,
                    gout,
                    decay,
                    history,
                    gsteps,
                    gdrive,
                    gbs,
                    gcs,
                )
                _add_sums(gbs, gb, n * CHUNK // WIDTH)
                _add_sums(gcs, gc, n * CHUNK // WIDTH)
            skip = load(skips, block)
            _close_block(count, block, skip, use_softplus, raw, x, steps, gout, gsteps, gdrive, gskips, goffsets)
            scatter_block(gsteps, tokens, count, low, gdelta)
            scatter_block(gdrive, tokens, count, low, gu)
        scatter_columns(gb.reshape((order, CHUNK)), tokens, count, gB)
        scatter_columns(gc.reshape((order, CHUNK)), tokens, count, gC)
    for e in range(first_block * WIDTH, min(last_block * WIDTH, channels)):
        block, lane = e // WIDTH, e % WIDTH
        gD[e], gbias[e] = gskips[block, lane], goffsets[block, lane]
        for n in range(given):
            gA[e, n] = grates[block * order + n, lane]


@njit(parallel=True, **OPTIONS)
def scan_backward(
    u, delta, A, B, C, D, bias, use_softplus, plans, parts, states, gy, gu, gdelta, gA, gB, gC, gD, gbias
):
    """Gradients by every input. gu is per direction (b, G, L, E); gA, gD, gbias are per image (b, G, ...); gB
    and gC per part (parts, b, G, L, N): the caller adds them up."""
    images, directions, _, channels = delta.shape
    blocks = (channels + WIDTH - 1) // WIDTH
    for task in prange(images * directions * parts):
        part = task % parts
        g = (task // parts) % directions
        image = task // (parts * directions)
        _backward_task(
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
            states[image, g],
            gy[image, g],
            gu[image, g],
            gdelta[image, g],
            gA[image, g],
            gB[part, image, g],
            gC[part, image, g],
            gD[image, g],
            gbias[image, g],
        )

"""The selective scan and its gradient as numba kernels on canonical tokens, float32.

A task walks one direction of one image. It gathers `CHUNK` tokens in the order visited into small buffers
that stay in the cache, works on them there, one state at a time, with the channels in the innermost,
vectorised loop, and scatters the result. The state that enters each chunk is kept for the gradient, which
recomputes the states inside a chunk; memory is that of the outputs plus N / CHUNK of it.

Arrays: u (b, G or 1, L, E); delta, y and their gradients (b, G, L, E); A (G, E, N); B, C (b, G, L, N); D,
bias (G, E) or with no rows when absent; plans (G, 7) from `Traversal.index_plan`; states (b, G, chunks, N,
padded E). The channels of a direction are shared out over `parts` tasks, a multiple of WIDTH each (the last
one padded to it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from RegMambaLib.scan.numba_math import exp, sigmoid, softplus

CHUNK = 64
WIDTH = 16
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
def _channels_of(part, parts, channels):
    blocks = (channels + WIDTH - 1) // WIDTH
    return (part * blocks // parts) * WIDTH, min(channels, ((part + 1) * blocks // parts) * WIDTH)


@njit(**OPTIONS)
def _time_steps(delta, bias, use_softplus, count, low, width):
    """In place: delta + bias, through softplus where asked."""
    if bias.shape[0] > 0:
        offsets = bias[low : low + width]
        for t in range(count):
            row = delta[t]
            for e in range(offsets.size):
                row[e] += offsets[e]
    if use_softplus:
        for t in range(count):
            row = delta[t]
            for e in range(row.size):
                row[e] = softplus(row[e])


@njit(**OPTIONS)
def _multiply(count, first, second, product):
    """product[t] = first[t] * second[t]."""
    for t in range(count):
        x, y, out = first[t], second[t], product[t]
        for e in range(out.size):
            out[e] = x[e] * y[e]


@njit(**OPTIONS)
def _scale(count, rows, factors, scaled):
    """scaled[t] = factors * rows[t]."""
    for t in range(count):
        x, out = rows[t], scaled[t]
        for e in range(out.size):
            out[e] = factors[e] * x[e]


@njit(**OPTIONS)
def _forward_chunk(count, delta, drive, a, B, C, state, y):
    """Through one chunk: updates state (N, .) and adds to y (CHUNK, .); drive = delta * u."""
    width = drive.shape[1]
    for n in range(a.shape[0]):
        rate, h = a[n], state[n]
        for t in range(count):
            b, c, step, push, out = B[t, n], C[t, n], delta[t], drive[t], y[t]
            for e in range(width):
                value = exp(step[e] * rate[e]) * h[e] + push[e] * b
                h[e] = value
                out[e] += value * c


@njit(parallel=True, **OPTIONS)
def scan_forward(u, delta, A, B, C, D, bias, use_softplus, plans, parts, y, states):
    """Writes y and, where `states` has room for them, the state that enters each chunk."""
    images, directions, length, channels = delta.shape
    order = A.shape[2]
    for task in prange(images * directions * parts):
        part = task % parts
        g = (task // parts) % directions
        image = task // (parts * directions)
        low, high = _channels_of(part, parts, channels)
        width = high - low
        padded = (width + WIDTH - 1) // WIDTH * WIDTH
        u_direction = g if u.shape[1] > 1 else 0
        tokens = np.empty(CHUNK, np.int64)
        steps = np.zeros((CHUNK, padded), _f4)
        x = np.zeros((CHUNK, padded), _f4)
        out = np.empty((CHUNK, padded), _f4)
        b = np.empty((CHUNK, order), _f4)
        c = np.empty((CHUNK, order), _f4)
        a = np.zeros((order, padded), _f4)
        drive = np.empty((CHUNK, padded), _f4)
        skip = np.zeros(padded, _f4)
        state = np.zeros((order, padded), _f4)
        a[:, :width] = A[g, low:high].T
        if D.shape[0] > 0:
            skip[:width] = D[g, low:high]
        for first in range(0, length, CHUNK):
            count = min(CHUNK, length - first)
            fill_tokens(first, count, plans[g], tokens)
            gather(delta[image, g], tokens, count, low, high, steps)
            gather(u[image, u_direction], tokens, count, low, high, x)
            gather(B[image, g], tokens, count, 0, order, b)
            gather(C[image, g], tokens, count, 0, order, c)
            _time_steps(steps, bias[g] if bias.shape[0] > 0 else bias.ravel(), use_softplus, count, low, width)
            if states.shape[0] > 0:
                states[image, g, first // CHUNK, :, low : low + padded] = state
            _multiply(count, steps, x, drive)
            _scale(count, x, skip, out)
            _forward_chunk(count, steps, drive, a, b, c, state, out)
            scatter(out, tokens, count, low, high, y[image, g])


@njit(**OPTIONS)
def _backward_chunk(
    count, delta, drive, a, B, C, gy, entering, adjoint, history, decay, gh, gdelta, gdrive, ga, gB, gC
):
    """Gradient of `_forward_chunk`.

    adjoint (N, .): gradient by the state that leaves the chunk; on return by the one that enters it. gdelta
    (that through exp alone), gdrive (CHUNK, .), ga (N, .) are added to, gB and gC (CHUNK, N) written. history
    (CHUNK + 1, .), decay and gh (CHUNK, .) are work space. The loops are as short as they are because LLVM
    vectorises a loop only while it has few pointers to check against each other.
    """
    width = drive.shape[1]
    for n in range(a.shape[0]):
        rate, grate, lam = a[n], ga[n], adjoint[n]
        history[0] = entering[n]
        for t in range(count):
            b, step, push, keep, before, after = (
                B[t, n],
                delta[t],
                drive[t],
                decay[t],
                history[t],
                history[t + 1],
            )
            for e in range(width):
                keep[e] = exp(step[e] * rate[e])
            for e in range(width):
                after[e] = keep[e] * before[e] + push[e] * b
        for t in range(count - 1, -1, -1):
            c, gout, g, keep = C[t, n], gy[t], gh[t], decay[t]
            for e in range(width):
                g[e] = lam[e] + gout[e] * c
            for e in range(width):
                lam[e] = g[e] * keep[e]
        for t in range(count):
            b, gout, g, push, after = B[t, n], gy[t], gh[t], drive[t], history[t + 1]
            gpush, sum_b, sum_c = gdrive[t], _f4(0), _f4(0)
            for e in range(width):
                sum_b += g[e] * push[e]
                sum_c += gout[e] * after[e]
            gB[t, n] = sum_b
            gC[t, n] = sum_c
            for e in range(width):
                gpush[e] += g[e] * b
        for t in range(count):
            step, g, keep, before, gstep = delta[t], gh[t], decay[t], history[t], gdelta[t]
            for e in range(width):
                keep[e] *= g[e] * before[e]
            for e in range(width):
                gstep[e] += keep[e] * rate[e]
            for e in range(width):
                grate[e] += keep[e] * step[e]


@njit(**OPTIONS)
def _finish_chunk(count, raw, x, skip, gy, gdrive, use_softplus, gstep, gx, gskip, goffset):
    """The terms outside the recurrence: skip, softplus and bias. gstep becomes the gradient by the given
    delta.
    """
    for t in range(count):
        before, token, gout, push, grow, gtoken = raw[t], x[t], gy[t], gdrive[t], gstep[t], gx[t]
        for e in range(skip.size):
            grow[e] += push[e] * token[e]
        if use_softplus:
            for e in range(skip.size):
                grow[e] *= sigmoid(before[e])
        for e in range(skip.size):
            goffset[e] += grow[e]
        for e in range(skip.size):
            gtoken[e] += skip[e] * gout[e]
        for e in range(skip.size):
            gskip[e] += gout[e] * token[e]


@njit(parallel=True, **OPTIONS)
def scan_backward(
    u, delta, A, B, C, D, bias, use_softplus, plans, parts, states, gy, gu, gdelta, gA, gB, gC, gD, gbias
):
    """Gradients by every input. gu is per direction (b, G, L, E); gA, gD, gbias are per image (b, G, ...); gB
    and gC per part (parts, b, G, L, N): the caller adds them up."""
    images, directions, length, channels = delta.shape
    order = A.shape[2]
    for task in prange(images * directions * parts):
        part = task % parts
        g = (task // parts) % directions
        image = task // (parts * directions)
        low, high = _channels_of(part, parts, channels)
        width = high - low
        padded = (width + WIDTH - 1) // WIDTH * WIDTH
        u_direction = g if u.shape[1] > 1 else 0
        tokens = np.empty(CHUNK, np.int64)
        raw = np.zeros((CHUNK, padded), _f4)
        steps = np.zeros((CHUNK, padded), _f4)
        x = np.zeros((CHUNK, padded), _f4)
        gout = np.zeros((CHUNK, padded), _f4)
        drive = np.empty((CHUNK, padded), _f4)
        gstep = np.empty((CHUNK, padded), _f4)
        gdrive = np.empty((CHUNK, padded), _f4)
        gx = np.empty((CHUNK, padded), _f4)
        b = np.empty((CHUNK, order), _f4)
        c = np.empty((CHUNK, order), _f4)
        gb = np.empty((CHUNK, order), _f4)
        gc = np.empty((CHUNK, order), _f4)
        a = np.zeros((order, padded), _f4)
        ga = np.zeros((order, padded), _f4)
        adjoint = np.zeros((order, padded), _f4)
        history = np.empty((CHUNK + 1, padded), _f4)
        decay = np.empty((CHUNK, padded), _f4)
        gh = np.empty((CHUNK, padded), _f4)
        skip = np.zeros(padded, _f4)
        gskip = np.zeros(padded, _f4)
        goffset = np.zeros(padded, _f4)
        a[:, :width] = A[g, low:high].T
        if D.shape[0] > 0:
            skip[:width] = D[g, low:high]
        offset_row = bias[g] if bias.shape[0] > 0 else bias.ravel()
        for first in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            count = min(CHUNK, length - first)
            fill_tokens(first, count, plans[g], tokens)
            gather(delta[image, g], tokens, count, low, high, raw)
            gather(u[image, u_direction], tokens, count, low, high, x)
            gather(B[image, g], tokens, count, 0, order, b)
            gather(C[image, g], tokens, count, 0, order, c)
            gather(gy[image, g], tokens, count, low, high, gout)
            _time_steps(raw, offset_row, False, count, low, width)
            steps[:] = raw
            _time_steps(steps, offset_row[:0], use_softplus, count, low, width)
            entering = states[image, g, first // CHUNK, :, low : low + padded]
            _multiply(count, steps, x, drive)
            gstep[:] = _f4(0)
            gdrive[:] = _f4(0)
            _backward_chunk(
                count,
                steps,
                drive,
                a,
                b,
                c,
                gout,
                entering,
                adjoint,
                history,
                decay,
                gh,
                gstep,
                gdrive,
                ga,
                gb,
                gc,
            )
            _multiply(count, steps, gdrive, gx)
            _finish_chunk(count, raw, x, skip, gout, gdrive, use_softplus, gstep, gx, gskip, goffset)
            scatter(gstep, tokens, count, low, high, gdelta[image, g])
            scatter(gx, tokens, count, low, high, gu[image, g])
            scatter(gb, tokens, count, 0, order, gB[part, image, g])
            scatter(gc, tokens, count, 0, order, gC[part, image, g])
        gA[image, g, low:high] = ga[:, :width].T
        gD[image, g, low:high] = gskip[:width]
        gbias[image, g, low:high] = goffset[:width]

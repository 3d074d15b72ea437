"""The depthwise causal convolution along traversals and its gradient as numba kernels on canonical tokens,
float32.

Arrays: x (b, G or 1, L, E); y (b, G, L, E); weight (G, E, K), its last tap on the current token; bias (G, E)
or with no rows; plans (G, 7) from `Traversal.index_plan`. A direction is cut into `segments` runs of tokens,
one task each.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from RegMambaLib.scan.numba_math import sigmoid
from RegMambaLib.scan.numba_scan import CHUNK, OPTIONS, fill_tokens, gather, scatter

_f4 = np.float32


@njit(**OPTIONS)
def _gather_run(source, first, count, plan, tokens, rows):
    """rows[i] = source row of the (first + i)-th token visited; zero before the first token and after the
    last.
    """
    before = min(count, max(0, -first))
    inside = min(count, source.shape[0] - first) - before
    rows[:count] = _f4(0)
    if inside > 0:
        fill_tokens(first + before, inside, plan, tokens)
        gather(source, tokens, inside, 0, source.shape[1], rows[before:])


@njit(**OPTIONS)
def _convolve(rows, taps, offset, count, out):
    """out[t] = offset + sum_k taps[k] * rows[t + k]."""
    for t in range(count):
        row = out[t]
        for e in range(row.size):
            row[e] = offset[e]
        for k in range(taps.shape[0]):
            tap, x = taps[k], rows[t + k]
            for e in range(row.size):
                row[e] += tap[e] * x[e]


@njit(parallel=True, **OPTIONS)
def conv_forward(x, weight, bias, silu, plans, segments, y):
    """Writes y."""
    images, directions, length, channels = y.shape
    width = weight.shape[2]
    chunks = (length + CHUNK - 1) // CHUNK
    for task in prange(images * directions * segments):
        segment = task % segments
        g = (task // segments) % directions
        image = task // (segments * directions)
        x_direction = g if x.shape[1] > 1 else 0
        tokens = np.empty(CHUNK + width, np.int64)
        rows = np.empty((CHUNK + width, channels), _f4)
        out = np.empty((CHUNK, channels), _f4)
        taps = weight[g].T.copy()
        offset = bias[g].copy() if bias.shape[0] > 0 else np.zeros(channels, _f4)
        for chunk in range(segment * chunks // segments, (segment + 1) * chunks // segments):
            first = chunk * CHUNK
            count = min(CHUNK, length - first)
            _gather_run(x[image, x_direction], first - width + 1, count + width - 1, plans[g], tokens, rows)
            _convolve(rows, taps, offset, count, out)
            if silu:
                for t in range(count):
                    row = out[t]
                    for e in range(channels):
                        row[e] *= sigmoid(row[e])
            fill_tokens(first, count, plans[g], tokens)
            scatter(out, tokens, count, 0, channels, y[image, g])


@njit(parallel=True, **OPTIONS)
def conv_backward(x, weight, bias, silu, plans, segments, gy, gx, gweight, gbias):
    """gx is per direction (b, G, L, E); gweight (tasks, E, K) and gbias (tasks, E) are per task, task = ((b,
    G), segment).
    """
    images, directions, length, channels = gy.shape
    width = weight.shape[2]
    halo = width - 1
    chunks = (length + CHUNK - 1) // CHUNK
    for task in prange(images * directions * segments):
        segment = task % segments
        g = (task // segments) % directions
        image = task // (segments * directions)
        x_direction = g if x.shape[1] > 1 else 0
        tokens = np.empty(CHUNK + 2 * halo + 1, np.int64)
        rows = np.empty((CHUNK + 2 * halo, channels), _f4)
        gout = np.empty((CHUNK + halo, channels), _f4)
        pre = np.empty((CHUNK + halo, channels), _f4)
        grows = np.empty((CHUNK, channels), _f4)
        taps = weight[g].T.copy()
        mirrored = taps[::-1].copy()
        offset = bias[g].copy() if bias.shape[0] > 0 else np.zeros(channels, _f4)
        nothing = np.zeros(channels, _f4)
        gtaps = np.zeros((width, channels), _f4)
        goffset = np.zeros(channels, _f4)
        for chunk in range(segment * chunks // segments, (segment + 1) * chunks // segments):
            first = chunk * CHUNK
            count = min(CHUNK, length - first)
            # The outputs that depend on these tokens are theirs and the next K - 1, whose own inputs start K - 1
            # before.
            _gather_run(gy[image, g], first, count + halo, plans[g], tokens, gout)
            _gather_run(x[image, x_direction], first - halo, count + 2 * halo, plans[g], tokens, rows)
            if silu:
                _convolve(rows, taps, offset, count + halo, pre)
                for t in range(count + halo):
                    value, grad = pre[t], gout[t]
                    for e in range(channels):
                        s = sigmoid(value[e])
                        grad[e] *= s * (_f4(1) + value[e] * (_f4(1) - s))
            _convolve(gout, mirrored, nothing, count, grows)
            for t in range(count):
                grad = gout[t]
                for e in range(channels):
                    goffset[e] += grad[e]
                for k in range(width):
                    gtap, row = gtaps[k], rows[t + k]
                    for e in range(channels):
                        gtap[e] += grad[e] * row[e]
            fill_tokens(first, count, plans[g], tokens)
            scatter(grows, tokens, count, 0, channels, gx[image, g])
        gweight[task] = gtaps.T
        gbias[task] = goffset

"""Row operations of the numba kernels, float32, and the 3 x 3 determinant.

The operations are short loops over slices, which LLVM turns into vector code.
A loop over a slice starts at 0, so that numba leaves out the check for negative indices, and it names few arrays,
because LLVM compares every pair of pointers before it vectorises, and gives up above eight comparisons.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ..kernel_cache import forget_stale_kernels

forget_stale_kernels()

RELAXED = {"reassoc", "contract", "arcp", "nsz", "afn"}
HELPER: dict[str, Any] = {"fastmath": RELAXED, "cache": True, "error_model": "numpy"}


@njit(**HELPER)
def scale_row(row, weight, out):
    """out = weight * row."""
    for x in range(out.size):
        out[x] = weight * row[x]


@njit(**HELPER)
def add_row(total, row, weight):
    """total += weight * row."""
    for x in range(total.size):
        total[x] += weight * row[x]


@njit(**HELPER)
def add_rows(total, first, second, weight):
    """total += weight * (first + second)."""
    for x in range(total.size):
        total[x] += weight * (first[x] + second[x])


@njit(**HELPER)
def multiply_rows(first, second, out):
    """out = first * second."""
    for x in range(out.size):
        out[x] = first[x] * second[x]


@njit(**HELPER)
def replace_row(total, old, new):
    """total += new - old, then old = new."""
    for x in range(total.size):
        total[x] += new[x] - old[x]
        old[x] = new[x]


@njit(**HELPER)
def bounds_of(spans, z):
    """The box (first and past the last y, first and past the last x) around the spans of plane z; empty: y0 >= y1."""
    y0, y1 = np.int64(spans.shape[1]), np.int64(0)
    x0, x1 = np.int64(2**31), np.int64(0)
    for y in range(spans.shape[1]):
        low, high = np.int64(spans[z, y, 0]), np.int64(spans[z, y, 1])
        if low < high:
            y0, y1 = min(y0, np.int64(y)), np.int64(y + 1)
            x0, x1 = min(x0, low), max(x1, high)
    return y0, y1, x0, x1


@njit(**HELPER)
def determinant(a, b, c, d, e, f, g, h, i):
    """Of the matrix with the rows (a, b, c), (d, e, f), (g, h, i)."""
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

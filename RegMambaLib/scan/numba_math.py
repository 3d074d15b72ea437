"""Elementary functions in float32 that LLVM can vectorise, since numba's own call one scalar libm routine per
element.

They carry their own, stricter floating-point flags: reassociation would undo the two-part ln 2 of `exp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# numpy's error model: a check for division by zero would be a branch, and keep the loop from being
# vectorised.
_STRICT: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "cache": True}

_LOG2_E = np.float32(1.442695040888963)
_LN2_HIGH = np.float32(0.693359375)  # few enough bits that k * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-88.0)  # k = -127, whose exponent bits are those of 0
_HIGHEST = np.float32(88.7)  # k = 128, whose exponent bits are those of infinity
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_ZERO = np.float32(0)


@njit(**_STRICT)
def exp(x):
    """e^x to 1e-7 relative: x = k ln 2 + r, a Taylor polynomial in |r| <= 0.35, 2^k put in the exponent bits.

    Below -87.7 (about 1e-38) it is 0 and above 88.4 infinite.
    """
    clamped = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(clamped * _LOG2_E + _HALF)
    r = clamped - k * _LN2_HIGH - k * _LN2_LOW
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + _HALF
    p = p * r + _ONE
    p = p * r + _ONE
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power


@njit(**_STRICT)
def sigmoid(x):
    """1 / (1 + e^-x), from e^-|x| so that it neither overflows nor loses small values."""
    z = exp(-abs(x))
    return (_ONE if x >= _ZERO else z) / (_ONE + z)


@njit(**_STRICT)
def softplus(x):
    """log(1 + e^x) as max(x, 0) + log1p(e^-|x|), with log1p(z) = 2 artanh(z / (2 + z)) as a series (|s| <=
    1/3).
    """
    z = exp(-abs(x))
    s = z / (np.float32(2) + z)
    q = s * s
    p = np.float32(1 / 15)
    p = p * q + np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + _ONE
    return max(x, _ZERO) + np.float32(2) * s * p

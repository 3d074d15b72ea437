"""Elementary functions of float32 or `Lanes`, since numba's own call one scalar libm routine per element.

Written without branches. Products and sums may be fused, nothing else: reassociation would undo the rounding in `exp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from RegMambaLib.scan.numba_lanes import at_least, at_most, exponent_from_low_bits, multiply_add

# numpy's error model: a check for division by zero would be a branch, and keep a loop from being vectorised.
_STRICT: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True, "cache": True}

_f4 = np.float32
_LOG2_E = _f4(1.442695040888963)
_LOWEST = _f4(-88.0)  # k = -127, whose exponent bits are those of 0
_HIGHEST = _f4(88.7)  # k = 128, whose exponent bits are those of infinity
# Of numbers this large the last bit counts ones, so that a sum with it is rounded to a whole number k; the lowest bits
# of the sum are those of k + 127.
_ROUND = _f4(1.5 * 2**23 + 127)
_ONE = _f4(1)
_ZERO = _f4(0)


@njit(**_STRICT)
def exp(x):
    """e^x to 2e-7 relative, 2e-6 at -80: 2^k 2^r with k whole and |r| <= 1/2, 2^r = 1 + r q(r), q a minimax polynomial.

    Below -87.7 (about 1e-38) it is 0 and above 88.4 infinite.
    """
    clamped = at_most(at_least(x, _LOWEST), _HIGHEST)
    rounded = multiply_add(clamped, _LOG2_E, _ROUND)
    r = multiply_add(clamped, _LOG2_E, _ROUND - rounded)
    p = r * _f4(1.5018160047475249e-4) + _f4(1.3372309040278196e-3)
    p = p * r + _f4(9.619204327464104e-3)
    p = p * r + _f4(5.550408363342285e-2)
    p = p * r + _f4(2.4022650718688965e-1)
    p = p * r + _f4(6.931471824645996e-1)
    p = p * r + _ONE
    return p * exponent_from_low_bits(rounded)


@njit(**_STRICT)
def sigmoid(x):
    """1 / (1 + e^-x); below -88.4 it is 0."""
    return _ONE / (_ONE + exp(_ZERO - x))


@njit(**_STRICT)
def softplus(x):
    """log(1 + e^x) as max(x, 0) + log(1 + z), z = e^-|x|, with log(1 + z) / z by a polynomial (2e-7 relative)."""
    z = exp(at_most(x, _ZERO - x))
    p = z * _f4(4.6523879282176495e-3) + _f4(-2.7207057923078537e-2)
    p = p * z + _f4(7.456579804420471e-2)
    p = p * z + _f4(-1.3364732265472412e-1)
    p = p * z + _f4(1.8974937498569489e-1)
    p = p * z + _f4(-2.4813322722911835e-1)
    p = p * z + _f4(3.331613540649414e-1)
    p = p * z + _f4(-4.999941289424896e-1)
    p = p * z + _ONE
    return at_least(x, _ZERO) + z * p

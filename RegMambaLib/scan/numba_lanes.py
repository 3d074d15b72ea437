"""`Lanes`: sixteen float32 values side by side as one value in numba kernels.

LLVM keeps them in vector registers of the machine, whatever their width (one of AVX-512, two of AVX2, four of NEON), so
that a kernel's speed does not depend on whether LLVM sees how to vectorise a loop.

`+ - * /` work on Lanes and between Lanes and float32, with products and sums fused where the machine can. The functions
without an array argument also take float32 alone. No function here checks an index or counts it from the end.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from RegMambaLib.kernel_cache import forget_stale_kernels

forget_stale_kernels()

WIDTH = 16

# For type checkers: called from a kernel, an intrinsic does not take the typing context that it is defined with.
intrinsic: Any = extending.intrinsic

_SCALAR = ir.FloatType()
_VECTOR = ir.VectorType(_SCALAR, WIDTH)
_FLAGS = ("contract",)


class LanesType(types.Type):
    """The type of Lanes in kernels; there is no such value outside of them."""

    def __init__(self) -> None:
        super().__init__("Lanes")


LANES = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _numeric(*kinds: Any) -> bool:
    return all(kind in (LANES, types.float32) for kind in kinds)


def _common(*kinds: Any) -> Any:
    return LANES if LANES in kinds else types.float32


def _spread(builder: Any, value: Any) -> Any:
    """One value in all lanes; Lanes as they are."""
    if value.type == _VECTOR:
        return value
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def _binary(emit: Any) -> Any:
    """The intrinsic of a function of two values; `emit` gets an IR builder and both as the same type."""

    @intrinsic
    def apply(typing, first, second):
        if not _numeric(first, second):
            return None
        result = _common(first, second)

        def generate(context, builder, signature, values):
            return emit(builder, *(_spread(builder, value) if result == LANES else value for value in values))

        return result(first, second), generate

    return apply


def _define(symbol: Any, instruction: str) -> None:
    """Makes an operator of Python work on Lanes."""
    apply = _binary(lambda builder, x, y: getattr(builder, instruction)(x, y, flags=_FLAGS))

    @overload(symbol)
    def choose(first, second):
        if _numeric(first, second) and LANES in (first, second):
            return lambda first, second: apply(first, second)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.iadd, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_symbol, _instruction)

# Where the first is NaN it stays: the comparison is false.
at_least = _binary(lambda builder, x, low: builder.select(builder.fcmp_ordered("<", x, low), low, x))
at_most = _binary(lambda builder, x, high: builder.select(builder.fcmp_ordered(">", x, high), high, x))


@intrinsic
def multiply_add(typing, x, y, z):
    """x y + z, rounded once where the machine can, even if the product is used again."""
    if not _numeric(x, y, z):
        return None
    result = _common(x, y, z)

    def generate(context, builder, signature, values):
        values = [_spread(builder, value) if result == LANES else value for value in values]
        kind, name = (_VECTOR, f"v{WIDTH}f32") if result == LANES else (_SCALAR, "f32")
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{name}"
        )
        return builder.call(fused, values)

    return result(x, y, z), generate


@intrinsic
def exponent_from_low_bits(typing, value):
    """The number whose exponent bits are the lowest bits of `value`, its other bits 0: 2^(bits - 127)."""
    if not _numeric(value):
        return None

    def generate(context, builder, signature, values):
        kind = values[0].type
        whole = ir.VectorType(ir.IntType(32), WIDTH) if kind == _VECTOR else ir.IntType(32)
        shift = ir.Constant(whole, [23] * WIDTH if kind == _VECTOR else 23)
        return builder.bitcast(builder.shl(builder.bitcast(values[0], whole), shift), kind)

    return value(value), generate


def _is_rows(kind: Any, axes: int) -> bool:
    return isinstance(kind, types.Array) and kind.dtype == types.float32 and kind.ndim == axes and kind.layout == "C"


def _pointer(context: Any, builder: Any, signature: Any, values: Any, column: Any = None) -> Any:
    """Of the Lanes at row values[1] of the array values[0]; rows are WIDTH long unless a column is given."""
    array = context.make_array(signature.args[0])(context, builder, values[0])
    row = context.cast(builder, values[1], signature.args[1], types.intp)
    length = context.get_constant(types.intp, WIDTH)
    if column is not None:
        length = cgutils.unpack_tuple(builder, array.shape)[1]
    place = builder.mul(row, length)
    if column is not None:
        place = builder.add(place, column)
    return builder.bitcast(builder.gep(array.data, [place]), _VECTOR.as_pointer())


@intrinsic
def load(typing, rows, row):
    """rows[row], of rows (., WIDTH)."""
    if not (_is_rows(rows, 2) and isinstance(row, types.Integer)):
        return None

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, signature, values), align=4)

    return LANES(rows, row), generate


@intrinsic
def load_at(typing, matrix, row, column):
    """matrix[row, column : column + WIDTH]."""
    if not (_is_rows(matrix, 2) and isinstance(row, types.Integer)):
        return None

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, signature, values, values[2]), align=4)

    return LANES(matrix, row, types.intp), generate


@intrinsic
def store(typing, rows, row, value):
    """rows[row] = value, of rows (., WIDTH)."""
    if not (_is_rows(rows, 2) and isinstance(row, types.Integer) and value == LANES):
        return None

    def generate(context, builder, signature, values):
        builder.store(values[2], _pointer(context, builder, signature, values), align=4)
        return context.get_dummy_value()

    return types.void(rows, row, value), generate


@intrinsic
def store_at(typing, matrix, row, column, value):
    """matrix[row, column : column + WIDTH] = value."""
    if not (_is_rows(matrix, 2) and isinstance(row, types.Integer) and value == LANES):
        return None

    def generate(context, builder, signature, values):
        builder.store(values[3], _pointer(context, builder, signature, values, values[2]), align=4)
        return context.get_dummy_value()

    return types.void(matrix, row, types.intp, value), generate


@intrinsic
def prefetch_at(typing, matrix, row, column):
    """Has matrix[row, column : column + WIDTH] brought into the second-level cache."""
    if not (_is_rows(matrix, 2) and isinstance(row, types.Integer)):
        return None

    def generate(context, builder, signature, values):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        place = builder.bitcast(_pointer(context, builder, signature, values, values[2]), byte)
        builder.call(function, [place, flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(matrix, row, types.intp), generate


@intrinsic
def spread(typing, row, index):
    """row[index] in all lanes."""
    if not (_is_rows(row, 1) and isinstance(index, types.Integer)):
        return None

    def generate(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        place = context.cast(builder, values[1], signature.args[1], types.intp)
        return _spread(builder, builder.load(builder.gep(array.data, [place])))

    return LANES(row, index), generate


@intrinsic
def pair_sums(typing, first, second):
    """Sums of neighbouring lanes: of `first` in the lower half, of `second` in the upper."""
    if not (first == LANES and second == LANES):
        return None

    def generate(context, builder, signature, values):
        def every_other(begin):
            picked = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), list(range(begin, 2 * WIDTH, 2)))
            return builder.shuffle_vector(*values, picked)

        return builder.fadd(every_other(0), every_other(1))

    return LANES(first, second), generate


@njit(cache=True, error_model="numpy")
def aligned_rows(count):
    """Zeros (count, WIDTH) that begin at a cache line: otherwise every load of Lanes may touch two."""
    whole = np.zeros((count + 1) * WIDTH, np.float32)
    first = (-(whole.ctypes.data // 4)) % WIDTH
    return whole[first : first + count * WIDTH].reshape(count, WIDTH)

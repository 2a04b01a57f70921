"""Sums over a block of values and the nearest of levels that are 1 apart, in the processor's
registers.

values, weights: float32 `[n]`, n one of SIZES. Sums are in the order of `compute.sums.halved_sum`,
so that loops over memory give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    constants,
    everywhere,
    halved,
    load,
    struct_of,
    zeros,
)

LANES = 8
SIZES = (32, 64, 128, 256)
"""Values of the blocks that there is code for."""

_VECTOR = ir.VectorType(FLOAT, LANES)


class Block:
    """What the terms of a sum are made of. numbers: those that the loop hands over, as vectors."""

    def __init__(self, builder: Any, values: Any, weights: Any, numbers: Sequence[Any]) -> None:
        self.builder, self._values, self._weights, self.numbers = builder, values, weights, numbers

    def value(self, number: int) -> Any:
        return load(self.builder, self._values, PLACE(LANES * number), LANES)

    def weight(self, number: int) -> Any | None:
        """The weights of these values; None where all are 1."""
        if self._weights is None:
            return None
        return load(self.builder, self._weights, PLACE(LANES * number), LANES)

    def weighed(self, vector: Any, number: int) -> Any:
        """Times the weights of these values."""
        weight = self.weight(number)
        return vector if weight is None else self.builder.fmul(vector, weight)

    def level(self, value: Any) -> Any:
        """The level nearest to each value times the inverse of a step. numbers: the last three are
        that inverse, the lowest level, and how many levels are above it."""
        builder, (inverse, lowest, top) = self.builder, self.numbers[-3:]
        shift = builder.fsub(lowest, constants(FLOAT, LANES, 0.5))
        code = _rounded_down(builder, builder.fsub(builder.fmul(value, inverse), shift))
        code = larger(builder, code, zeros(FLOAT, LANES))
        code = builder.select(builder.fcmp_ordered("<", code, top), code, top)
        return builder.fadd(code, lowest)


def larger(builder: Any, left: Any, right: Any) -> Any:
    """The larger one in each lane; the right one where one is no number."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def magnitude(builder: Any, vector: Any) -> Any:
    """|v| of each lane; +0 of a zero of either sign."""
    return _called(builder, "fabs", vector)


def _rounded_down(builder: Any, vector: Any) -> Any:
    return _called(builder, "floor", vector)


def _called(builder: Any, name: str, vector: Any) -> Any:
    """A function of LLVM's, of each lane."""
    kind, full = ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), [vector])


Terms = Callable[[Block, int], Sequence[Any]]
"""The terms, a vector of each sum, of the values with a number of vectors before them."""


def _sums(terms: Terms, numbers: int, sums: int = 1, *, of_largest: bool = False) -> Any:
    """What takes (values, weights, is_weighed, a tuple of so many float32 numbers, or None) and
    gives so many sums: a float32, or a tuple of them. weights are not read unless `is_weighed`.
    of_largest: the largest term instead of the sum."""

    def of_block(context: Any, values: Any, weights: Any, is_weighed: Any, given: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [struct_of(target, builder, signature, arguments, each) for each in (0, 1)]
            size = builder.extract_value(arrays[0].shape, 0)
            of_values, of_weights = (array.data for array in arrays)
            singles = cgutils.unpack_tuple(builder, arguments[3], numbers) if numbers else []
            vectors = [everywhere(builder, single, LANES) for single in singles]
            results = [cgutils.alloca_once_value(builder, FLOAT(0.0)) for _ in range(sums)]
            heavy = builder.icmp_unsigned("!=", arguments[2], arguments[2].type(0))
            join = partial(larger, builder) if of_largest else builder.fadd

            def fill(count: int, data: Any) -> None:
                block = Block(builder, of_values, data, vectors)
                totals = halved(builder, count // LANES, partial(terms, block), join)
                for total, result in zip(totals, results, strict=True):
                    builder.store(total, result)

            for count in SIZES:
                is_it = builder.icmp_unsigned("==", size, PLACE(count))
                with builder.if_then(is_it), builder.if_else(heavy) as (weighed, unweighed):
                    with weighed:
                        fill(count, of_weights)
                    with unweighed:
                        fill(count, None)
            loaded = [builder.load(result) for result in results]
            if sums == 1:
                return loaded[0]
            return target.make_tuple(builder, signature.return_type, loaded)

        found = types.float32 if sums == 1 else types.UniTuple(types.float32, sums)
        several = types.UniTuple(types.float32, numbers) if numbers else types.none
        return found(values, weights, types.boolean, several), generate

    return intrinsic(of_block)


def seen(block: Block, number: int) -> Sequence[Any]:
    """|v| of those whose weight is above 0."""
    size, weight, nought = (
        magnitude(block.builder, block.value(number)),
        block.weight(number),
        zeros(FLOAT, LANES),
    )
    if weight is None:
        return [size]
    is_seen = block.builder.fcmp_ordered(">", weight, nought)
    return [block.builder.select(is_seen, size, nought)]


def _magnitudes(block: Block, number: int) -> Sequence[Any]:
    return [block.weighed(magnitude(block.builder, block.value(number)), number)]


def squares_of(block: Block, number: int) -> Sequence[Any]:
    """w·v²."""
    value = block.value(number)
    return [block.weighed(block.builder.fmul(value, value), number)]


def errors_of(block: Block, number: int) -> Sequence[Any]:
    """w·(v − scale·L)²."""
    value, builder = block.value(number), block.builder
    error = builder.fsub(value, builder.fmul(block.level(value), block.numbers[0]))
    return [block.weighed(builder.fmul(error, error), number)]


def products_of(block: Block, number: int) -> Sequence[Any]:
    """w·v·L and w·L²."""
    value, builder = block.value(number), block.builder
    level = block.level(value)
    weighed = block.weighed(level, number)
    return [builder.fmul(value, weighed), builder.fmul(level, weighed)]


largest_magnitude = _sums(seen, 0, of_largest=True)
"""max |v| of the values whose weight is above 0."""

sum_magnitudes = _sums(_magnitudes, 0)
"""Σ w·|v|."""

sum_squares = _sums(squares_of, 0)
"""Σ w·v²."""

squared_error = _sums(errors_of, 4)
"""Σ w·(v − scale·L)². numbers: the scale, and those of `level`."""

sum_products = _sums(products_of, 3, 2)
"""Σ w·v·L and Σ w·L². numbers: those of `level`."""

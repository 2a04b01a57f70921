"""Sums over a block of magnitudes and the nearest of levels that are 1 apart around zero, in the
processor's registers.

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

    def __init__(
        self, builder: Any, values: Any, weights: Any, numbers: Sequence[Any], levels: Any = None
    ) -> None:
        self.builder, self._values, self._weights, self.numbers = builder, values, weights, numbers
        self._levels = levels

    def value(self, number: int) -> Any:
        return load(self.builder, self._values, PLACE(LANES * number), LANES)

    def level(self, number: int) -> Any:
        """The levels of these values, of sums that take them."""
        return load(self.builder, self._levels, PLACE(LANES * number), LANES)

    def weight(self, number: int) -> Any | None:
        """The weights of these values; None where all are 1."""
        if self._weights is None:
            return None
        return load(self.builder, self._weights, PLACE(LANES * number), LANES)

    def weighed(self, vector: Any, number: int) -> Any:
        """Times the weights of these values."""
        weight = self.weight(number)
        return vector if weight is None else self.builder.fmul(vector, weight)


def larger(builder: Any, left: Any, right: Any) -> Any:
    """The larger one in each lane; the right one where one is no number."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def magnitude(builder: Any, vector: Any) -> Any:
    """|v| of each lane; +0 of a zero of either sign."""
    return called(builder, "fabs", vector)


def called(builder: Any, name: str, vector: Any) -> Any:
    """A function of LLVM's, of each lane."""
    kind, full = ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), [vector])


Terms = Callable[[Block, int], Sequence[Any]]
"""The terms, a vector of each sum, of the values with a number of vectors before them."""


def sums_of(
    terms: Terms, numbers: int, sums: int = 1, *, of_largest: bool = False, beside: bool = False
) -> Any:
    """What takes (values, weights, is_weighed, a tuple of so many float32 numbers, or None) and
    gives so many sums: a float32, or a tuple of them. weights are not read unless `is_weighed`.
    of_largest: the largest term instead of the sum. beside: it takes the levels of the values
    too, after these."""
    found = types.float32 if sums == 1 else types.UniTuple(types.float32, sums)
    several = types.UniTuple(types.float32, numbers) if numbers else types.none

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *arrays, heavy, given = arguments
        structs = [
            struct_of(target, builder, signature, arguments, number)
            for number in range(len(arrays))
        ]
        size = builder.extract_value(structs[0].shape, 0)
        of_values, of_weights = structs[0].data, structs[-1].data
        of_levels = structs[1].data if beside else None
        singles = cgutils.unpack_tuple(builder, given, numbers) if numbers else []
        vectors = [everywhere(builder, single, LANES) for single in singles]
        results = [cgutils.alloca_once_value(builder, FLOAT(0.0)) for _ in range(sums)]
        is_heavy = builder.icmp_unsigned("!=", heavy, heavy.type(0))
        join = partial(larger, builder) if of_largest else builder.fadd

        def fill(count: int, data: Any) -> None:
            block = Block(builder, of_values, data, vectors, of_levels)
            totals = halved(builder, count // LANES, partial(terms, block), join)
            for total, result in zip(totals, results, strict=True):
                builder.store(total, result)

        for count in SIZES:
            is_it = builder.icmp_unsigned("==", size, PLACE(count))
            with builder.if_then(is_it), builder.if_else(is_heavy) as (weighed, unweighed):
                with weighed:
                    fill(count, of_weights)
                with unweighed:
                    fill(count, None)
        loaded = [builder.load(result) for result in results]
        if sums == 1:
            return loaded[0]
        return target.make_tuple(builder, signature.return_type, loaded)

    def of_block(context: Any, values: Any, weights: Any, is_weighed: Any, given: Any) -> Any:
        return found(values, weights, types.boolean, several), generate

    def with_levels(
        context: Any, values: Any, levels: Any, weights: Any, is_weighed: Any, given: Any
    ) -> Any:
        return found(values, levels, weights, types.boolean, several), generate

    return intrinsic(with_levels if beside else of_block)


def _seen(block: Block, number: int) -> Sequence[Any]:
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
    return [block.weighed(block.value(number), number)]


def _squares(block: Block, number: int) -> Sequence[Any]:
    """w·v²."""
    value = block.value(number)
    return [block.weighed(block.builder.fmul(value, value), number)]


def fits_of(block: Block, number: int) -> Sequence[Any]:
    """w·e² and w·e·L, of the nearest level L and what the value is above it, in units of a step.
    numbers: the inverse of that step, the lowest level above or at 0, and how many levels are above
    that one."""
    value, builder, (inverse, lowest, top) = block.value(number), block.builder, block.numbers
    above = builder.fsub(builder.fmul(value, inverse), lowest)
    nearest = called(builder, "rint", above)
    nearest = builder.select(builder.fcmp_ordered("<", nearest, top), nearest, top)
    error, level = builder.fsub(above, nearest), builder.fadd(nearest, lowest)
    products = builder.fmul(error, error), builder.fmul(error, level)
    return [block.weighed(product, number) for product in products]


largest_magnitude = sums_of(_seen, 0, of_largest=True)
"""max |v| of the values whose weight is above 0."""

sum_magnitudes = sums_of(_magnitudes, 0)
"""Σ w·v of magnitudes v."""

sum_squares = sums_of(_squares, 0)
"""Σ w·v²."""

sum_fits = sums_of(fits_of, 3, 2)
"""Σ w·e² and Σ w·e·L. numbers: those of `fits_of`."""

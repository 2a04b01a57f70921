"""The search of `scales.best_scales` for eight blocks at once, where levels are 1 apart around zero
and nothing is weighed: each lane of a register has the values of one block, so that no processor
waits for sums over lanes, or for what comes next. Each block gets the same bits as alone.

values: float32 `[8 · n]`, the magnitudes of all eight blocks, value after value; n one of SIZES.
desk: float32 `[ROWS, 8]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.even_levels import (
    LANES,
    SIZES,
    Block,
    Terms,
    fits_of,
    larger,
    magnitude,
)
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    constants,
    everywhere,
    joined,
    load,
    store,
    struct_of,
    transposed,
    zeros,
)

BLOCKS = LANES
ROWS = 11
SPREAD, SCALE, INVERSE, LOWEST, TOP, LARGEST, ENERGY, BEST, LEAST, FOUND, SECOND = range(ROWS)
"""Of a desk, which has a number of each block: its Gaussian scale; the scale that is tried, and its
inverse; the lowest level, and how many are above it; the largest magnitude; the sum of squares, or
of magnitudes; the best scale so far, and its error; and what was summed up last."""


class _Blocks(Block):
    """The values of eight blocks, from one in each LANES on."""

    def __init__(self, builder: Any, values: Any, numbers: Sequence[Any], first: Any) -> None:
        super().__init__(builder, values, None, numbers)
        self._eight, self._first = values, first

    def value(self, number: int) -> Any:
        return load(self.builder, self._eight, self._place(number), LANES)

    def put(self, vector: Any, number: int) -> None:
        """In the place of those values."""
        store(self.builder, vector, self._eight, self._place(number))

    def _place(self, number: int) -> Any:
        return self.builder.add(self._first, PLACE(LANES * LANES * number))


def _loaded(builder: Any, desk: Any, rows: Sequence[int]) -> list[Any]:
    return [load(builder, desk.data, PLACE(LANES * row), LANES) for row in rows]


def _sums(terms: Terms, numbers: Sequence[int], into: Sequence[int]) -> Any:
    """What takes (values, desk) and puts sums over each block into rows of the desk, in the order
    of `compute.sums.halved_sum`. numbers: the rows that the terms are made of."""

    def of_blocks(context: Any, values: Any, desk: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            of_values, of_desk = (
                struct_of(target, builder, signature, arguments, each) for each in range(2)
            )
            size = builder.extract_value(of_values.shape, 0)
            vectors = _loaded(builder, of_desk, numbers)

            def of_every_eighth(count: int, first: Any) -> Sequence[Any]:
                blocks = _Blocks(builder, of_values.data, vectors, first)
                return joined(count // LANES, partial(terms, blocks), builder.fadd)

            for count in SIZES:
                is_it = builder.icmp_unsigned("==", size, PLACE(BLOCKS * count))
                with builder.if_then(is_it):
                    begun = of_every_eighth(count, PLACE(0))
                    totals = [cgutils.alloca_once_value(builder, vector) for vector in begun]
                    for total, vector in zip(totals, begun, strict=True):
                        builder.store(vector, total)
                    with cgutils.for_range(builder, PLACE(LANES), start=PLACE(1)) as places:
                        first = builder.mul(places.index, PLACE(LANES))
                        added = of_every_eighth(count, first)
                        for total, vector in zip(totals, added, strict=True):
                            builder.store(builder.fadd(builder.load(total), vector), total)
                    for row, total in zip(into, totals, strict=True):
                        store(builder, builder.load(total), of_desk.data, PLACE(LANES * row))
            return target.get_dummy_value()

        return types.none(values, desk), generate

    return intrinsic(of_blocks)


def _divided(block: Block, number: int) -> Any:
    """The values over the one number, which they become."""
    assert isinstance(block, _Blocks)
    value = block.builder.fdiv(block.value(number), block.numbers[0])
    block.put(value, number)
    return value


def _divided_squares(block: Block, number: int) -> Sequence[Any]:
    value = _divided(block, number)
    return [block.builder.fmul(value, value)]


_divide_and_add = _sums(lambda block, number: [_divided(block, number)], (SCALE,), (ENERGY,))
_divide_and_square = _sums(_divided_squares, (SCALE,), (ENERGY,))
_fit = _sums(fits_of, (INVERSE, LOWEST, TOP), (FOUND, SECOND))


@intrinsic  # type: ignore[untyped-decorator]
def _gather(context: Any, blocks: Any, values: Any, desk: Any) -> Any:
    """values: get the magnitudes of those of eight blocks, float32 `[8, n]`; and LARGEST the
    largest of each block."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_blocks, of_values, of_desk = (
            struct_of(target, builder, signature, arguments, each) for each in range(3)
        )
        size = builder.extract_value(of_blocks.shape, 1)
        largest = cgutils.alloca_once_value(builder, zeros(FLOAT, LANES))
        builder.store(zeros(FLOAT, LANES), largest)
        with cgutils.for_range(builder, builder.udiv(size, PLACE(LANES))) as parts:
            begin = builder.mul(parts.index, PLACE(LANES))
            rows = [
                load(
                    builder,
                    of_blocks.data,
                    builder.add(begin, builder.mul(size, PLACE(row))),
                    LANES,
                )
                for row in range(BLOCKS)
            ]
            for number, vector in enumerate(transposed(builder, rows)):
                place = builder.mul(builder.add(begin, PLACE(number)), PLACE(LANES))
                sizes = magnitude(builder, vector)
                store(builder, sizes, of_values.data, place)
                builder.store(larger(builder, sizes, builder.load(largest)), largest)
        store(builder, builder.load(largest), of_desk.data, PLACE(LANES * LARGEST))
        return target.get_dummy_value()

    return types.none(blocks, values, desk), generate


Step = Callable[[Any, Sequence[Any], Sequence[Any]], Sequence[Any]]
"""From a builder, vectors of rows, and of single numbers: new rows."""


def _step(step: Step, reads: Sequence[int], writes: Sequence[int], numbers: int) -> Any:
    """What takes (desk, a tuple of so many float32 numbers)."""

    def of_desk(context: Any, desk: Any, given: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = struct_of(target, builder, signature, arguments, 0)
            singles = cgutils.unpack_tuple(builder, arguments[1], numbers)
            vectors = [everywhere(builder, single, LANES) for single in singles]
            made = step(builder, _loaded(builder, rows, reads), vectors)
            for row, vector in zip(writes, made, strict=True):
                store(builder, vector, rows.data, PLACE(LANES * row))
            return target.get_dummy_value()

        return types.none(desk, types.UniTuple(types.float32, numbers)), generate

    return intrinsic(of_desk)


def _or_one(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    """1 where the row is not above the number."""
    is_above = builder.fcmp_ordered(">", rows[0], numbers[0])
    return [builder.select(is_above, rows[0], constants(FLOAT, LANES, 1.0))]


def _of_spread(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    count, gaussian = numbers
    kind = ir.FunctionType(count.type, [count.type])
    root = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32")
    return [builder.fmul(builder.call(root, [builder.fdiv(rows[0], count)]), gaussian)]


def _same(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    return numbers


def _with_inverse(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    """Of a scale: a row times the first number, or that number itself."""
    scale = builder.fmul(rows[0], numbers[0]) if rows else numbers[0]
    divisor = _or_one(builder, [scale], numbers[1:])[0]
    return [scale, builder.fdiv(constants(FLOAT, LANES, 1.0), divisor)]


def _better(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Sequence[Any]:
    """The best scale for the levels that were found, if its error is less than the least one."""
    scale, inverse, energy, best, least, squares, shared = rows
    nothing, one = zeros(FLOAT, LANES), constants(FLOAT, LANES, 1.0)
    whole = builder.fmul(builder.fmul(energy, inverse), inverse)
    power = builder.fsub(builder.fsub(whole, builder.fadd(shared, shared)), squares)
    least_known = builder.fmul(numbers[0], builder.fadd(whole, squares))
    is_known = builder.fcmp_ordered(">", power, least_known)
    move = builder.select(is_known, builder.fdiv(shared, power), nothing)
    left = larger(builder, builder.fsub(squares, builder.fmul(shared, move)), nothing)
    error = builder.fmul(builder.fmul(scale, scale), left)
    fitted = builder.fmul(scale, larger(builder, builder.fadd(one, move), nothing))
    is_less = builder.fcmp_ordered("<", error, least)
    return [builder.select(is_less, *pair) for pair in ((fitted, best), (error, least))]


_begin = _step(_same, (), (BEST, LEAST, LOWEST, TOP), 4)
_set_divisor = _step(_or_one, (LARGEST,), (SCALE,), 1)
_spread = _step(_of_spread, (ENERGY,), (SPREAD,), 2)
_scale_by_spread = _step(_with_inverse, (SPREAD,), (SCALE, INVERSE), 2)
_scale_by_best = _step(_with_inverse, (BEST,), (SCALE, INVERSE), 2)
_set_scale = _step(_with_inverse, (), (SCALE, INVERSE), 2)
_compare = _step(_better, (SCALE, INVERSE, ENERGY, BEST, LEAST, FOUND, SECOND), (BEST, LEAST), 1)


@loop
def best_scales_of_eight(
    blocks: np.ndarray,
    table: np.ndarray,
    spreads: np.ndarray,
    shrinks: np.ndarray,
    nears: np.ndarray,
    gaussian: np.float32,
    reach: np.float32,
    tiny: np.float32,
    least_power: np.float32,
    values: np.ndarray,
    desk: np.ndarray,
    scales: np.ndarray,
) -> None:
    """scales: `[8]`, gets the scale of each block, `[8, n]`. values, desk: are overwritten. The
    rest is as of `scales.best_scales`."""
    zero, count, above = np.float32(0), np.float32(blocks.shape[1]), table.size // 2
    top = np.float32(table.size - 1 - above)
    _gather(blocks, values, desk)
    _set_divisor(desk, (zero,))
    if table.size == 2:  # one magnitude
        _divide_and_add(values, desk)
        for block in range(BLOCKS):
            mean = np.float32(desk[ENERGY, block] / count)
            scales[block] = np.float32(mean * desk[LARGEST, block]) / reach
        return
    _divide_and_square(values, desk)
    _spread(desk, (count, gaussian))
    _begin(desk, (zero, np.float32(np.inf), table[above], top))
    for attempt in range(spreads.size + shrinks.size + nears.size):
        number = attempt - spreads.size
        if attempt < spreads.size:
            _scale_by_spread(desk, (spreads[attempt], tiny))
        elif number < shrinks.size:
            _set_scale(desk, (shrinks[number], tiny))
        else:
            _scale_by_best(desk, (nears[number - shrinks.size], tiny))
        _fit(values, desk)
        _compare(desk, (least_power,))
    for block in range(BLOCKS):
        scales[block] = desk[BEST, block] * desk[LARGEST, block]

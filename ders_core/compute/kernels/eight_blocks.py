"""The search of `scales.best_scales` for eight blocks at once, where levels are 1 apart and nothing
is weighed: each lane of a register has the values of one block, so that no processor waits for sums
over lanes, or for what comes next. Each block gets the same bits as alone.

values: float32 `[8 · n]`, value after value of all eight blocks; n one of SIZES.
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
    errors_of,
    larger,
    products_of,
    seen,
    squares_of,
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
SPREAD, SCALE, INVERSE, LOWEST, TOP, LARGEST, BEST, LEAST, FIRST, FOUND, SECOND = range(ROWS)
"""Of a desk, float32 `[ROWS, 8]`, which has a number of each block: its Gaussian scale; the scale
that is tried, and its inverse; the lowest level, and how many are above it; the largest magnitude;
the best scale so far, its error, and the number of the attempt; and what was summed up last."""


class _Blocks(Block):
    """The values of eight blocks, from one in each LANES on."""

    def __init__(self, builder: Any, values: Any, numbers: Sequence[Any], first: Any) -> None:
        super().__init__(builder, values, None, numbers)
        self._eight, self._first = values, first

    def value(self, number: int) -> Any:
        place = self.builder.add(self._first, PLACE(LANES * LANES * number))
        return load(self.builder, self._eight, place, LANES)


def _loaded(builder: Any, desk: Any, rows: Sequence[int]) -> list[Any]:
    return [load(builder, desk.data, PLACE(LANES * row), LANES) for row in rows]


def _sums(terms: Terms, numbers: Sequence[int], sums: int = 1, *, of_largest: bool = False) -> Any:
    """What takes (values, desk) and puts sums over each block into FOUND, and SECOND, in the order
    of `compute.sums.halved_sum`. numbers: the rows that the terms are made of. of_largest: the
    largest term instead of the sum."""

    def of_blocks(context: Any, values: Any, desk: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            of_values, of_desk = (
                struct_of(target, builder, signature, arguments, each) for each in range(2)
            )
            size = builder.extract_value(of_values.shape, 0)
            vectors = _loaded(builder, of_desk, numbers)
            join: Callable[[Any, Any], Any] = (
                partial(larger, builder) if of_largest else builder.fadd
            )

            def of_every_eighth(count: int, first: Any) -> Sequence[Any]:
                blocks = _Blocks(builder, of_values.data, vectors, first)
                return joined(count // LANES, partial(terms, blocks), join)

            for count in SIZES:
                is_it = builder.icmp_unsigned("==", size, PLACE(BLOCKS * count))
                with builder.if_then(is_it):
                    begun = of_every_eighth(count, PLACE(0))
                    totals = [cgutils.alloca_once_value(builder, vector) for vector in begun]
                    for total, vector in zip(totals, begun, strict=True):
                        builder.store(vector, total)
                    with cgutils.for_range(builder, PLACE(LANES), start=PLACE(1)) as places:
                        first = builder.mul(places.index, PLACE(LANES))
                        for total, vector in zip(
                            totals, of_every_eighth(count, first), strict=True
                        ):
                            builder.store(join(builder.load(total), vector), total)
                    for row, total in enumerate(totals, FOUND):
                        store(builder, builder.load(total), of_desk.data, PLACE(LANES * row))
            return target.get_dummy_value()

        return types.none(values, desk), generate

    return intrinsic(of_blocks)


_largest = _sums(seen, (), of_largest=True)
_squares = _sums(squares_of, ())
_errors = _sums(errors_of, (SCALE, INVERSE, LOWEST, TOP))
_products = _sums(products_of, (INVERSE, LOWEST, TOP), 2)


@intrinsic  # type: ignore[untyped-decorator]
def _gather(context: Any, blocks: Any, values: Any) -> Any:
    """values: get those of eight blocks, float32 `[8, n]`."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_blocks, of_values = (
            struct_of(target, builder, signature, arguments, each) for each in range(2)
        )
        size = builder.extract_value(of_blocks.shape, 1)
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
                store(builder, vector, of_values.data, place)
        return target.get_dummy_value()

    return types.none(blocks, values), generate


@intrinsic  # type: ignore[untyped-decorator]
def _divide(context: Any, values: Any, desk: Any) -> Any:
    """values: are divided by the largest magnitude of their blocks, if that is above 0."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_values, of_desk = (
            struct_of(target, builder, signature, arguments, each) for each in range(2)
        )
        size = builder.extract_value(of_values.shape, 0)
        largest = _loaded(builder, of_desk, (LARGEST,))[0]
        divisor = _or_one(builder, largest, zeros(FLOAT, LANES))
        with cgutils.for_range(builder, builder.udiv(size, PLACE(LANES))) as parts:
            place = builder.mul(parts.index, PLACE(LANES))
            vector = load(builder, of_values.data, place, LANES)
            store(builder, builder.fdiv(vector, divisor), of_values.data, place)
        return target.get_dummy_value()

    return types.none(values, desk), generate


def _or_one(builder: Any, vector: Any, least: Any) -> Any:
    """1 where the vector is not above `least`."""
    is_above = builder.fcmp_ordered(">", vector, least)
    return builder.select(is_above, vector, constants(FLOAT, LANES, 1.0))


Step = Callable[[Any, Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Any]]
"""From a builder, vectors of rows, and of single numbers: new rows, and a condition of each block,
or None."""


def _step(step: Step, reads: Sequence[int], writes: Sequence[int], numbers: int) -> Any:
    """What takes (desk, a tuple of so many float32 numbers), and gives whether the condition is
    true of any block."""

    def of_desk(context: Any, desk: Any, given: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = struct_of(target, builder, signature, arguments, 0)
            singles = cgutils.unpack_tuple(builder, arguments[1], numbers)
            vectors = [everywhere(builder, single, LANES) for single in singles]
            made, condition = step(builder, _loaded(builder, rows, reads), vectors)
            for row, vector in zip(writes, made, strict=True):
                store(builder, vector, rows.data, PLACE(LANES * row))
            if condition is None:
                return cgutils.false_bit
            flags = builder.bitcast(condition, ir.IntType(LANES))
            return builder.icmp_unsigned("!=", flags, flags.type(0))

        several = types.UniTuple(types.float32, numbers)
        return types.boolean(desk, several), generate

    return intrinsic(of_desk)


def _largest_kept(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    nothing, infinite = numbers
    return [rows[0], nothing, infinite, nothing], None


def _of_spread(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    count, gaussian = numbers
    kind = ir.FunctionType(count.type, [count.type])
    root = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32")
    return [builder.fmul(builder.call(root, [builder.fdiv(rows[0], count)]), gaussian)], None


def _times(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    return [builder.fmul(rows[0], numbers[0])], None


def _same(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    return numbers, None


def _inverted(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    one = constants(FLOAT, LANES, 1.0)
    return [builder.fdiv(one, _or_one(builder, rows[0], numbers[0]))], None


def _quotient(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    quotient = builder.fdiv(rows[0], larger(builder, rows[1], numbers[0]))
    return [larger(builder, quotient, zeros(FLOAT, LANES))], None


def _better(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    scale, best, least, first, found = rows
    number, is_first_search = numbers
    is_less = builder.fcmp_ordered("<", found, least)
    is_same = builder.fcmp_ordered("==", found, least)
    is_before = builder.fcmp_ordered("<", number, builder.fmul(first, is_first_search))
    taken = builder.or_(is_less, builder.and_(is_same, is_before))
    pairs = (scale, best), (found, least), (number, first)
    return [builder.select(taken, *pair) for pair in pairs], is_less


def _hopeful(builder: Any, rows: Sequence[Any], numbers: Sequence[Any]) -> Any:
    return [], builder.not_(builder.fcmp_ordered(">", numbers[0], rows[0]))


_begin = _step(_largest_kept, (FOUND,), (LARGEST, BEST, LEAST, FIRST), 2)
_spread = _step(_of_spread, (FOUND,), (SPREAD,), 2)
_scale_by_spread = _step(_times, (SPREAD,), (SCALE,), 1)
_set_scale = _step(_same, (), (SCALE,), 1)
_set_levels = _step(_same, (), (LOWEST, TOP), 2)
_invert_scale = _step(_inverted, (SCALE,), (INVERSE,), 1)
_invert_best = _step(_inverted, (BEST,), (INVERSE,), 1)
_refine = _step(_quotient, (FOUND, SECOND), (SCALE,), 1)
_compare = _step(_better, (SCALE, BEST, LEAST, FIRST, FOUND), (BEST, LEAST, FIRST), 2)
_may_beat = _step(_hopeful, (LEAST,), (), 1)


@loop
def best_scales_of_eight(
    blocks: np.ndarray,
    table: np.ndarray,
    shrinks: np.ndarray,
    spreads: np.ndarray,
    gaussian: np.float32,
    reach: np.float32,
    caution: np.float32,
    tiny: np.float32,
    refinements: int,
    values: np.ndarray,
    scales: np.ndarray,
) -> None:
    """scales: `[8]`, gets the scale of each block, `[8, n]`. values: is overwritten. The rest is as
    of `scales.best_scales`."""
    one, zero = np.float32(1), np.float32(0)
    desk = np.empty((ROWS, BLOCKS), np.float32)
    _set_levels(desk, (table[0], np.float32(table.size - 1)))
    _gather(blocks, values)
    _largest(values, desk)
    _begin(desk, (zero, np.float32(np.inf)))
    _divide(values, desk)
    _squares(values, desk)
    _spread(desk, (np.float32(blocks.shape[1]), gaussian))
    again = spreads.size + shrinks.size  # from there on refinements
    for attempt in range(again + refinements):
        number = attempt - spreads.size if attempt >= spreads.size else attempt + shrinks.size
        if attempt < spreads.size:
            _scale_by_spread(desk, (spreads[attempt],))
        elif attempt < again:
            # no error is below that of the largest value, where the levels do not reach it
            scale = shrinks[number]
            short = max(np.float32(one - caution - np.float32(reach * scale)), zero)
            bound = np.float32(np.float32(short * short) * np.float32(one - caution))
            if not _may_beat(desk, (bound,)):
                continue
            _set_scale(desk, (scale,))
        else:  # the best scale for the levels that the best one so far gives
            _invert_best(desk, (tiny,))
            _products(values, desk)
            _refine(desk, (tiny,))
        _invert_scale(desk, (tiny,))
        _errors(values, desk)
        is_better = _compare(desk, (np.float32(number), one if attempt < again else zero))
        if attempt >= again and not is_better:
            break
    for block in range(BLOCKS):
        scales[block] = desk[BEST, block] * desk[LARGEST, block]

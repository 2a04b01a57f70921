"""Sums of powers of values, all of them in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import part_apart
from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    doubled,
    folded,
    load,
    store,
    struct_of,
    zeros,
)

LANES = 8
"""Sums side by side, in float32."""

FIRST, ALONG, SECOND, THIRD, FOURTH, TOP = range(6)
"""Σv, Σv·along, Σv², Σv³, Σv⁴, and the largest magnitude."""


@intrinsic  # type: ignore[untyped-decorator]
def _sums(
    context: Any, block: Any, row: Any, along: Any, squares: Any, count: Any, found: Any
) -> Any:
    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, other, energy, sums = (
            struct_of(target, builder, signature, arguments, number) for number in (0, 2, 3, 5)
        )
        begin = builder.mul(arguments[1], builder.extract_value(rows.shape, 1))
        totals = [cgutils.alloca_once_value(builder, zeros(FLOAT, LANES)) for _ in range(TOP + 1)]

        def larger(left: Any, right: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", left, right), left, right)

        with cgutils.for_range(builder, builder.udiv(arguments[4], PLACE(LANES))) as loop:
            place = builder.mul(loop.index, PLACE(LANES))
            values = load(builder, rows.data, builder.add(begin, place), LANES)
            square = builder.fmul(values, values)
            terms = (
                values,
                builder.fmul(values, load(builder, other.data, place, LANES)),
                square,
                builder.fmul(square, values),
                builder.fmul(square, square),
            )
            for total, term in zip(totals[:TOP], terms, strict=True):
                builder.store(builder.fadd(builder.load(total), term), total)
            magnitude = larger(values, builder.fneg(values))
            builder.store(larger(builder.load(totals[TOP]), magnitude), totals[TOP])
            before = load(builder, energy.data, place, LANES)
            store(builder, builder.fadd(before, square), energy.data, place)
        for number, total in enumerate(totals):
            join = builder.fadd if number < TOP else larger
            value = folded(builder, doubled(builder, builder.load(total)), join)
            builder.store(value, builder.gep(sums.data, [PLACE(number)]))
        return target.get_dummy_value()

    return types.none(block, types.int64, along, squares, types.int64, found), generate


@part_apart
def sums(
    block: np.ndarray,
    row: int,
    along: np.ndarray,
    squares: np.ndarray,
    count: int,
    found: np.ndarray,
) -> None:
    """Of the first values of a row of block, float32 `[rows, width]`, contiguous.

    along: float32 `[width]`. squares: float32 `[width]`, gets the squares of values added. count:
    of values, a multiple of LANES. found: float64 `[6]`, gets the sums, numbered as above; NaN is
    never the largest.
    """
    _sums(block, row, along, squares, count, found)

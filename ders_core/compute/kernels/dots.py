"""Scalar products of many rows with each other, several at once in the processor's registers.

block: float32 `[rows, width]`, contiguous; rows are a multiple of LEFT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import part_apart
from ders_core.compute.kernels.vectors import (
    DOUBLE,
    FLOAT,
    PLACE,
    doubled,
    folded,
    load,
    struct_of,
    zeros,
)

LEFT, RIGHT = 4, 2
"""Rows of a tile: so many products, and what they are made of, fit into sixteen registers."""

LANES = 8
"""Sums side by side of each product in float32; half as many in float64."""


def _tile(lanes: int, number: ir.Type) -> Any:
    """What adds the products of LEFT rows with RIGHT rows, in `lanes` sums of `number`."""

    def add(context: Any, block: Any, count: Any, left: Any, right: Any, gram: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, sums = (struct_of(target, builder, signature, arguments, n) for n in (0, 4))
            width, across = (builder.extract_value(each.shape, 1) for each in (rows, sums))
            lefts = [builder.add(arguments[2], PLACE(step)) for step in range(LEFT)]
            rights = [builder.add(arguments[3], PLACE(step)) for step in range(RIGHT)]
            totals = [
                [cgutils.alloca_once_value(builder, zeros(number, lanes)) for _ in rights]
                for _ in lefts
            ]

            def values(row: Any, place: Any) -> Any:
                begin = builder.add(builder.mul(row, width), place)
                loaded = load(builder, rows.data, begin, lanes)
                return doubled(builder, loaded) if number == DOUBLE else loaded

            with cgutils.for_range(builder, builder.udiv(arguments[1], PLACE(lanes))) as loop:
                place = builder.mul(loop.index, PLACE(lanes))
                others = [values(row, place) for row in rights]
                for row, of_row in zip(lefts, totals, strict=True):
                    mine = values(row, place)
                    for other, total in zip(others, of_row, strict=True):
                        sum_of = builder.fadd(builder.load(total), builder.fmul(mine, other))
                        builder.store(sum_of, total)
            for row, of_row in zip(lefts, totals, strict=True):
                for other, total in zip(rights, of_row, strict=True):
                    lane_sums = builder.load(total)
                    if number == FLOAT:
                        lane_sums = doubled(builder, lane_sums)
                    product = folded(builder, lane_sums, builder.fadd)
                    place = builder.add(builder.mul(row, across), other)
                    address = builder.gep(sums.data, [place])
                    builder.store(builder.fadd(builder.load(address), product), address)
            return target.get_dummy_value()

        return types.none(block, types.int64, types.int64, types.int64, gram), generate

    return intrinsic(add)


_add_tile = _tile(LANES, FLOAT)
_add_exact_tile = _tile(LANES // 2, DOUBLE)


@part_apart
def add_products(block: np.ndarray, count: int, gram: np.ndarray) -> None:
    """gram: float64 `[rows, rows]`, gets the products of each row with itself and later ones added.
    count: values of each row, a multiple of LANES; their products are summed in float32."""
    for left in range(0, block.shape[0], LEFT):
        for right in range(left, block.shape[0], RIGHT):
            _add_tile(block, count, left, right, gram)


@part_apart
def add_exact_products(block: np.ndarray, count: int, gram: np.ndarray) -> None:
    """The same, summed in float64."""
    for left in range(0, block.shape[0], LEFT):
        for right in range(left, block.shape[0], RIGHT):
            _add_exact_tile(block, count, left, right, gram)

"""Products with codes in bit planes, not decoded: bits of a plane say which inputs count."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    everywhere,
    load,
    store,
    struct_of,
    zeros,
)

ROWS = 4
"""Rows at a time, for which an input is loaded once."""

LANES = 8
"""Inputs at a time: a byte of a plane."""

_WORD = ir.IntType(32)


@intrinsic  # type: ignore[untyped-decorator]
def _add_block(
    context: Any, packed: Any, begin: Any, apart: Any, size: Any, x: Any, factors: Any, sums: Any
) -> Any:
    """sums: float32 `[ROWS, LANES]`, get the sums of the inputs whose bits are set, times the row's
    factor.

    packed: bytes; those of the first row begin at `begin`, those of the next ones `apart` later;
    `size` of them for each. x: float32, of the block. factors: float32 `[ROWS]`.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, inputs, scales, totals = (
            struct_of(target, builder, signature, arguments, n) for n in (0, 4, 5, 6)
        )
        starts = [
            builder.add(arguments[1], builder.mul(arguments[2], PLACE(row))) for row in range(ROWS)
        ]
        words = ir.VectorType(_WORD, LANES)
        masks = ir.Constant(words, [1 << lane for lane in range(LANES)])
        nothing, none = ir.Constant(words, [0] * LANES), zeros(FLOAT, LANES)
        found = [cgutils.alloca_once_value(builder, none) for _ in range(ROWS)]
        with cgutils.for_range(builder, arguments[3]) as step:
            values = load(builder, inputs.data, builder.mul(step.index, PLACE(LANES)), LANES)
            for start, total in zip(starts, found, strict=True):
                byte = builder.load(builder.gep(bits.data, [builder.add(start, step.index)]))
                spread = everywhere(builder, builder.zext(byte, _WORD), LANES)
                is_set = builder.icmp_unsigned("!=", builder.and_(spread, masks), nothing)
                counted = builder.select(is_set, values, none)
                builder.store(builder.fadd(builder.load(total), counted), total)
        for row, total in enumerate(found):
            factor = builder.load(builder.gep(scales.data, [PLACE(row)]))
            place = PLACE(row * LANES)
            more = builder.fmul(builder.load(total), everywhere(builder, factor, LANES))
            before = load(builder, totals.data, place, LANES)
            store(builder, builder.fadd(before, more), totals.data, place)
        return target.get_dummy_value()

    signature = types.none(packed, types.int64, types.int64, types.int64, x, factors, sums)
    return signature, generate


@loop
def multiply(
    packed: np.ndarray, bits: int, scales: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """y: float32 `[n, out]`, gets Σ_j scale · code · x_j of each row and input.

    packed: planes of the codes of `[out, in]`, as of `planes`, with `out` a multiple of ROWS.
    scales: float32 `[out, blocks]`, of blocks of a multiple of 8 entries that fill rows. x: float32
    `[n, in]`.
    """
    out, blocks = scales.shape
    width = x.shape[1]
    row_bytes, stride = width // 8, (out * width + 7) // 8
    size = row_bytes // blocks
    sums, factors = np.empty((ROWS, LANES), np.float32), np.empty(ROWS, np.float32)
    for row in range(0, out, ROWS):
        for number in range(len(x)):
            sums[:] = np.float32(0)
            for block in range(blocks):
                values = x[number, 8 * block * size : 8 * (block + 1) * size]
                for bit in range(bits):
                    for each in range(ROWS):
                        factors[each] = scales[row + each, block] * np.float32(1 << bit)
                    begin = bit * stride + row * row_bytes + block * size
                    _add_block(packed, begin, row_bytes, size, values, factors, sums)
            for each in range(ROWS):
                total = np.float32(0)
                for lane in range(LANES):
                    total += sums[each, lane]
                y[number, row + each] = total

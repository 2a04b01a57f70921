"""Products with codes in bit planes, not decoded: bits of a plane say which inputs count."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.floats import widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.vectors import (
    FLOAT,
    PLACE,
    constants,
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

BYTES = 4
"""Bytes of a plane at a time, where a block has as many."""

LOG_MASK = 5
"""A mask has 2^LOG_MASK bytes."""

_WORD = ir.IntType(32)
_BYTE = ir.IntType(8)


MASKS = np.array(
    [[0xFFFFFFFF * (byte >> lane & 1) for lane in range(LANES)] for byte in range(256)], np.uint32
)
"""All bits of a lane where the byte's bit of that lane is set: to look up is quicker than to
compare."""


@intrinsic  # type: ignore[untyped-decorator]
def _add_block(
    context: Any,
    packed: Any,
    begin: Any,
    apart: Any,
    size: Any,
    bits: Any,
    stride: Any,
    x: Any,
    factors: Any,
    sums: Any,
    masks: Any,
) -> Any:
    """sums: float32 `[ROWS, LANES]`, get the products of codes and inputs, times the row's factor.

    packed: bytes; those of the first row's lowest bits begin at `begin`, those of the next rows
    `apart` later each, those of the next bits `stride` later; `size` of them for each. x: float32,
    of the block. factors: float32 `[ROWS]`. masks: `MASKS`.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        planes, inputs, scales, totals, table = (
            struct_of(target, builder, signature, arguments, n) for n in (0, 6, 7, 8, 9)
        )
        begin, apart, size, bits, stride = arguments[1:6]
        words = ir.VectorType(_WORD, LANES)
        none, two = zeros(FLOAT, LANES), constants(FLOAT, LANES, 2)
        start_of_masks = builder.bitcast(table.data, _BYTE.as_pointer())
        found = [cgutils.alloca_once(builder, none.type) for _ in range(ROWS)]
        for total in found:
            builder.store(none, total)

        def count(starts: list[Any], place: Any, kind: Any) -> None:
            """Add the inputs of a few bytes of each row, from that byte of the block on."""
            first = builder.mul(place, PLACE(LANES))
            values = [
                builder.bitcast(
                    load(builder, inputs.data, builder.add(first, PLACE(LANES * byte)), LANES),
                    words,
                )
                for byte in range(kind.width // LANES)
            ]
            for start, total in zip(starts, found, strict=True):
                address = builder.gep(planes.data, [builder.add(start, place)])
                stored = builder.load(builder.bitcast(address, kind.as_pointer()), align=1)
                word = builder.shl(builder.zext(stored, PLACE), PLACE(LOG_MASK))
                summed = builder.load(total)
                for byte, value in enumerate(values):
                    shifted = builder.lshr(word, PLACE(LANES * byte))
                    entry = builder.and_(shifted, PLACE(255 << LOG_MASK))
                    mask = builder.gep(start_of_masks, [entry])
                    flags = builder.load(builder.bitcast(mask, words.as_pointer()), align=4)
                    counted = builder.bitcast(builder.and_(value, flags), none.type)
                    summed = builder.fadd(summed, counted)
                builder.store(summed, total)

        whole = builder.udiv(size, PLACE(BYTES))
        done = builder.mul(whole, PLACE(BYTES))
        with cgutils.for_range(builder, bits) as plane:
            for total in found:
                builder.store(builder.fmul(builder.load(total), two), total)
            bit = builder.sub(builder.sub(bits, PLACE(1)), plane.index)
            of_plane = builder.add(begin, builder.mul(bit, stride))
            starts = [builder.add(of_plane, builder.mul(apart, PLACE(row))) for row in range(ROWS)]
            with cgutils.for_range(builder, whole) as step:
                count(starts, builder.mul(step.index, PLACE(BYTES)), _WORD)
            with cgutils.for_range(builder, builder.sub(size, done)) as step:
                count(starts, builder.add(done, step.index), _BYTE)
        for row, total in enumerate(found):
            factor = builder.load(builder.gep(scales.data, [PLACE(row)]))
            place = PLACE(row * LANES)
            more = builder.fmul(builder.load(total), everywhere(builder, factor, LANES))
            before = load(builder, totals.data, place, LANES)
            store(builder, builder.fadd(before, more), totals.data, place)
        return target.get_dummy_value()

    whole = (types.int64,) * 5
    return types.none(packed, *whole, x, factors, sums, masks), generate


@loop
def add(
    packed: np.ndarray,
    bits: int,
    scales: np.ndarray,
    offsets: np.ndarray,
    kind: int,
    start: np.float32,
    x: np.ndarray,
    of_blocks: np.ndarray,
    inputs: np.ndarray,
    experts: np.ndarray,
    y: np.ndarray,
    column: int,
    outputs: np.ndarray,
    first: int,
    last: int,
) -> None:
    """y[output, column + row] += Σ_j (scale · (code + start) + offset) · x[input, j], of the rows
    from `first` to `last` and every pair with an expert from 0 on.

    packed: uint8 `[experts, bytes]`, planes of the codes of `[out, in]`, as of `planes`, with `out`
    a multiple of ROWS. scales: floats of that kind `[experts, out, blocks]`, of blocks of a
    multiple of 8 entries that fill rows; offsets: likewise, or `[0, 0, 0]`. x: float32 `[n, in]`;
    of_blocks: float32 `[n, blocks]`, its sums. inputs, experts, outputs: int64 `[pairs]`. y:
    float32, two-dimensional.
    """
    out, blocks = scales.shape[1:]
    width = x.shape[1]
    row_bytes, stride = width // 8, (out * width + 7) // 8
    size = row_bytes // blocks
    plane, each_bytes = packed.reshape(-1), packed.shape[1]
    sums, factors = np.empty((ROWS, LANES), np.float32), np.empty(ROWS, np.float32)
    for row in range(first, last, ROWS):
        for pair in range(len(experts)):
            expert, number = experts[pair], inputs[pair]
            if expert < 0:
                continue
            sums[:] = np.float32(0)
            for block in range(blocks):
                values = x[number, 8 * block * size : 8 * (block + 1) * size]
                begin = expert * each_bytes + row * row_bytes + block * size
                for each in range(ROWS):
                    factors[each] = widen(scales[expert, row + each, block], kind)
                    constant = factors[each] * start
                    if len(offsets):
                        constant += widen(offsets[expert, row + each, block], kind)
                    sums[each, 0] += constant * of_blocks[number, block]
                _add_block(
                    plane, begin, row_bytes, size, bits, stride, values, factors, sums, MASKS
                )
            for each in range(ROWS):
                total = np.float32(0)
                for lane in range(LANES):
                    total += sums[each, lane]
                y[outputs[pair], column + row + each] += total

"""Products with codes in bit planes, not decoded: bits of a plane say which inputs count."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ders_core.compute.kernels.floats import widen
from ders_core.compute.kernels.loop import loop, part
from ders_core.compute.kernels.nibbles import (
    BYTES,
    PLACES,
    ROWS,
    TABLE,
    both_interleaved,
    looked_up,
)
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

COLUMNS = 16
"""Bytes of each row at a time."""

_VECTORS, _LANES = 4, 8
"""That hold a number for each of ROWS rows."""

_HALF = ir.VectorType(ir.IntType(8), COLUMNS)


@intrinsic  # type: ignore[untyped-decorator]
def _turn(context: Any, packed: Any, begins: Any, offset: Any, turned: Any, place: Any) -> Any:
    """turned: from `place` on, get COLUMNS times ROWS bytes: the first one of every row, then the
    second ones. begins: int64 `[ROWS]`, where the rows' bytes begin, `offset` before these."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored, starts, tile = (
            struct_of(target, builder, signature, arguments, n) for n in (0, 1, 3)
        )

        def row(number: int) -> Any:
            begin = builder.load(builder.gep(starts.data, [PLACE(number)]))
            address = builder.gep(stored.data, [builder.add(begin, arguments[2])])
            return builder.load(builder.bitcast(address, _HALF.as_pointer()), align=1)

        both = ir.Constant(ir.VectorType(ir.IntType(32), ROWS), [*range(ROWS)])
        vectors = [
            builder.shuffle_vector(row(number), row(number + COLUMNS), both)
            for number in range(COLUMNS)
        ]
        for _ in range(4):  # times, as often as 16 can be halved
            halves = zip(vectors[: COLUMNS // 2], vectors[COLUMNS // 2 :], strict=True)
            vectors = [
                each for pair in halves for each in both_interleaved(builder, pair[0], pair[1])
            ]
        for column, vector in enumerate(vectors):
            at = builder.add(arguments[4], PLACE(column * ROWS))
            address = builder.bitcast(builder.gep(tile.data, [at]), BYTES.as_pointer())
            builder.store(vector, address, align=1)
        return target.get_dummy_value()

    return types.none(packed, begins, types.int64, turned, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _add_columns(
    context: Any,
    turned: Any,
    bits: Any,
    flipped: Any,
    begin: Any,
    end: Any,
    tables: Any,
    first: Any,
    factors: Any,
    sums: Any,
    place: Any,
) -> Any:
    """sums: float32, ROWS of them from `place` on, get the products of codes less `flipped` and
    inputs, times the row's factor.

    Bits that `flipped` has are turned over, and count against the others: what has that code adds
    nothing at all.

    turned: uint8 `[bits · COLUMNS · ROWS]`, as of `_turn`, of which the columns from `begin` to
    `end` count. tables: bytes of the sums of inputs (see `nibbles`); those of `begin` begin at
    `first`. factors: float32 `[ROWS]`.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile, written, scales, totals = (
            struct_of(target, builder, signature, arguments, n) for n in (0, 5, 7, 8)
        )
        bits, flipped, begin, end, _, first = arguments[1:7]
        none, two = zeros(FLOAT, _LANES), constants(FLOAT, _LANES, 2)
        minus = constants(FLOAT, _LANES, -1)
        found = [cgutils.alloca_once(builder, none.type) for _ in range(_VECTORS)]
        for total in found:
            builder.store(none, total)
        low, four = constants(ir.IntType(8), ROWS, 15), constants(ir.IntType(8), ROWS, 4)
        with cgutils.for_range(builder, bits) as plane:
            bit = builder.sub(builder.sub(bits, PLACE(1)), plane.index)
            is_flipped = builder.trunc(builder.lshr(flipped, bit), ir.IntType(1))
            mask = everywhere(builder, builder.sext(is_flipped, ir.IntType(8)), ROWS)
            for total in found:
                doubled = builder.fmul(builder.load(total), two)
                turned_over = builder.fmul(doubled, minus)
                builder.store(builder.select(is_flipped, turned_over, doubled), total)
            of_plane = builder.add(builder.mul(bit, PLACE(COLUMNS)), begin)
            with cgutils.for_range(builder, builder.sub(end, begin)) as column:
                at = builder.mul(builder.add(of_plane, column.index), PLACE(ROWS))
                address = builder.bitcast(builder.gep(tile.data, [at]), BYTES.as_pointer())
                codes = builder.xor(builder.load(address, align=1), mask)
                table = builder.add(first, builder.mul(column.index, PLACE(2 * TABLE)))
                halves = builder.and_(codes, low), builder.lshr(codes, four)
                for number, half in enumerate(halves):
                    place = builder.gep(written.data, [builder.add(table, PLACE(number * TABLE))])
                    more = looked_up(target, builder, place, half)
                    for total, each in zip(found, more, strict=True):
                        builder.store(builder.fadd(builder.load(total), each), total)
            for total in found:
                turned_over = builder.fmul(builder.load(total), minus)
                builder.store(builder.select(is_flipped, turned_over, builder.load(total)), total)
        for number, total in enumerate(found):
            shift = PLACE(number * _LANES)
            factor = load(builder, scales.data, shift, _LANES)
            at = builder.add(arguments[9], shift)
            product = builder.fmul(builder.load(total), factor)
            before = load(builder, totals.data, at, _LANES)
            store(builder, builder.fadd(before, product), totals.data, at)
        return target.get_dummy_value()

    whole = types.int64
    signature = turned, whole, whole, whole, whole, tables, whole, factors, sums, whole
    return types.none(*signature), generate


@part
def _turn_some(
    packed: np.ndarray, begins: np.ndarray, offset: int, count: int, turned: np.ndarray, bit: int
) -> None:
    """As `_turn`, of `count` bytes of each row, at most COLUMNS, into the tile of a plane."""
    tile = bit * COLUMNS * ROWS
    if count == COLUMNS:
        _turn(packed, begins, offset, turned, tile)
    else:
        for place in range(ROWS):
            for byte in range(count):
                turned[tile + byte * ROWS + place] = packed[begins[place] + offset + byte]


@loop
def add(
    packed: np.ndarray,
    bits: int,
    scales: np.ndarray,
    offsets: np.ndarray,
    kind: int,
    start: np.float32,
    flipped: int,
    of_blocks: np.ndarray,
    tables: np.ndarray,
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

    packed: uint8 `[experts, bytes]`, planes of the codes of `[out, in]`, as of `planes`. scales:
    floats of that kind `[experts, out, blocks]`, of blocks of a multiple of 8 entries that fill
    rows; offsets: likewise, or `[0, 0, 0]`. of_blocks: float32 `[n, blocks]`, the sums of x
    `[n, in]`; tables: of x, as of `nibbles`. inputs, experts, outputs: int64 `[pairs]`; what an
    expert's codes are read for together stands together. flipped: as of `_add_columns`. y:
    float32, two-dimensional.
    """
    out, blocks = scales.shape[1:]
    row_bytes = tables.shape[1] // 2
    stride, size = out * row_bytes, row_bytes // blocks
    plane, each_bytes, of_input = packed.reshape(-1), packed.shape[1], 2 * TABLE * row_bytes
    written = tables.reshape(-1)
    rows, begins = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    turned = np.empty(bits * COLUMNS * ROWS, np.uint8)
    factors, constants_of = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    totals = np.empty(len(experts) * ROWS, np.float32)
    for begin in range(first, last, ROWS):
        for place in range(ROWS):
            rows[place] = min(begin + place, last - 1)
        pair = 0
        while pair < len(experts):
            expert, after = experts[pair], pair + 1
            while after < len(experts) and experts[after] == expert:
                after += 1
            if expert < 0:
                pair = after
                continue
            for place in range(ROWS):
                begins[PLACES[place]] = expert * each_bytes + rows[place] * row_bytes
            totals[: (after - pair) * ROWS] = 0
            current = -1
            for done in range(0, row_bytes, COLUMNS):
                end = min(done + COLUMNS, row_bytes)
                origin = max(end - COLUMNS, 0)  # the last bytes come with some that were there
                for bit in range(bits):
                    _turn_some(plane, begins, bit * stride + origin, end - origin, turned, bit)
                at = done
                while at < end:
                    block = at // size
                    stop = min((block + 1) * size, end)
                    if block != current:
                        current = block
                        for place in range(ROWS):
                            factors[place] = widen(scales[expert, rows[place], block], kind)
                        for place in range(ROWS):
                            constants_of[place] = factors[place] * (start + np.float32(flipped))
                        if len(offsets):
                            for place in range(ROWS):
                                offset = widen(offsets[expert, rows[place], block], kind)
                                constants_of[place] += offset
                        for each in range(pair, after):
                            summed, before = of_blocks[inputs[each], block], (each - pair) * ROWS
                            for place in range(ROWS):
                                totals[before + place] += constants_of[place] * summed
                    for each in range(pair, after):
                        _add_columns(
                            turned,
                            bits,
                            flipped,
                            at - origin,
                            stop - origin,
                            written,
                            inputs[each] * of_input + 2 * TABLE * at,
                            factors,
                            totals,
                            (each - pair) * ROWS,
                        )
                    at = stop
            for each in range(pair, after):
                for place in range(min(ROWS, last - begin)):
                    more = totals[(each - pair) * ROWS + place]
                    y[outputs[each], column + begin + place] += more
            pair = after

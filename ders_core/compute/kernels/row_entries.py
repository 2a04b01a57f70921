"""Sparse matrices that are read row by row: see `codecs.coding.row_places`.

starts: int32 `[out + 1]`, how many entries the rows before have. marks: uint64 `[words]`. columns:
uint8, the low bits of each entry's column, of which there are `low`: 4, two to a byte, or 8.

values: the bits of floats of a kind of `floats`; or, with the kind CODES, uint8, numbers of levels
of `bits` bits (1, 2, 4 or 8) side by side, the first in a byte's lowest bits. levels: float32,
which scales multiply: float32, or none. All is multiplied by gain.

owners: uint8 `[count]`, how many scales after the one of `firsts`, int32 `[out]`, each entry's is;
or `[0]`, where SCALED entries one after another share one.

row_steps: float32 `[out]`, or `[0]` for 1: what the entries of each row are multiplied by besides.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import (
    BFLOAT16,
    FLOAT32,
    bits_of,
    float_of,
    narrow,
    widen,
)
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.words import trailing_zeros

CODES = 3
SCALED = 128
WORD = 64
NIBBLE = 4

ONE, ALL = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)


@part_apart
def _read_places(
    first: int,
    marks_begin: int,
    marks_end: int,
    low: int,
    marks: np.ndarray,
    columns: np.ndarray,
    places: np.ndarray,
) -> int:
    """Write the columns of a row into places, int32, and return how many there are. first: the
    number of its first entry."""
    count, number = 0, marks_begin >> 6
    last, shift = (marks_end - 1) >> 6, np.uint64(marks_begin & 63)
    word = np.uint64(np.uint64(marks[number] >> shift) << shift)
    while number <= last and marks_begin < marks_end:
        if number == last:
            word &= np.uint64(ALL >> np.uint64(63 - ((marks_end - 1) & 63)))
        begin = number * WORD - marks_begin
        while word != 0 and count < places.size:
            places[count] = begin + trailing_zeros(word) - count
            word &= np.uint64(word - ONE)
            count += 1
        number += 1
        if number <= last:
            word = marks[number]
    if low == NIBBLE:
        done = min(first & 1, count)
        if done:
            places[0] = (places[0] << NIBBLE) | (columns[first >> 1] >> 4)
        byte, pairs = (first + done) >> 1, (count - done) >> 1
        for pair in range(pairs):
            both = np.int32(columns[byte + pair])
            place = done + 2 * pair
            places[place] = (places[place] << NIBBLE) | (both & 15)
            places[place + 1] = (places[place + 1] << NIBBLE) | (both >> 4)
        if done + 2 * pairs < count:
            places[count - 1] = (places[count - 1] << NIBBLE) | (columns[byte + pairs] & 15)
    else:
        for place in range(count):
            places[place] = (places[place] << 8) | columns[first + place]
    return count


@part_apart
def _read_values(
    row: int,
    first: int,
    count: int,
    values: np.ndarray,
    kind: int,
    bits: int,
    levels: np.ndarray,
    scales: np.ndarray,
    owners: np.ndarray,
    firsts: np.ndarray,
    gain: np.float32,
    found: np.ndarray,
) -> None:
    """Write the values of a row into found, float32. first: the number of its first entry."""
    if kind == CODES:
        mask = (1 << bits) - 1
        if owners.size:
            for place in range(count):
                begin = (first + place) * bits
                level = levels[(np.int64(values[begin >> 3]) >> (begin & 7)) & mask]
                scale = scales[firsts[row] + owners[first + place]]
                found[place] = np.float32(level * scale) * gain
            return
        for place in range(count):
            begin = (first + place) * bits
            level = levels[(np.int64(values[begin >> 3]) >> (begin & 7)) & mask]
            if scales.size:
                level *= scales[(first + place) // SCALED]
            found[place] = level * gain
    elif kind == BFLOAT16:  # in vectors
        stored = values[first : first + count]
        for place in range(count):
            wide = np.uint32(np.uint32(stored[place]) << np.uint32(16))
            found[place] = float_of(wide) * gain
    else:
        for place in range(count):
            found[place] = widen(values[first + place], kind) * gain


@loop
def multiply(
    starts: np.ndarray,
    marks: np.ndarray,
    columns: np.ndarray,
    low: int,
    values: np.ndarray,
    kind: int,
    bits: int,
    levels: np.ndarray,
    scales: np.ndarray,
    owners: np.ndarray,
    firsts: np.ndarray,
    gain: np.float32,
    row_steps: np.ndarray,
    x: np.ndarray,
    inputs: np.ndarray,
    y: np.ndarray,
    column: int,
    outputs: np.ndarray,
    first: int,
    last: int,
) -> None:
    """y[output, column + row] += Σ value · x[input, place], of the rows from `first` to
    `last` of one matrix and all pairs.

    x: float32 `[n, in]`. inputs, outputs: int64
    `[pairs]`. y: float32, two-dimensional.
    """
    width = x.shape[1]
    cells = (width + (1 << low) - 1) >> low
    places, found = np.empty(width, np.int32), np.empty(width, np.float32)
    for row in range(first, last):
        start, end = starts[row], starts[row + 1]
        count = _read_places(
            start, start + row * cells, end + (row + 1) * cells, low, marks, columns, places
        )
        _read_values(
            row, start, count, values, kind, bits, levels, scales, owners, firsts, gain, found
        )
        fours = count >> 2
        step = row_steps[row] if row_steps.size else np.float32(1)
        for pair in range(len(inputs)):
            number = inputs[pair]
            one, two, three, four = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for each in range(fours):
                place = 4 * each
                one += found[place] * x[number, places[place]]
                two += found[place + 1] * x[number, places[place + 1]]
                three += found[place + 2] * x[number, places[place + 2]]
                four += found[place + 3] * x[number, places[place + 3]]
            for place in range(4 * fours, count):
                one += found[place] * x[number, places[place]]
            y[outputs[pair], column + row] += step * ((one + two) + (three + four))


@loop
def add_onto(
    starts: np.ndarray,
    marks: np.ndarray,
    columns: np.ndarray,
    low: int,
    values: np.ndarray,
    kind: int,
    bits: int,
    levels: np.ndarray,
    scales: np.ndarray,
    owners: np.ndarray,
    firsts: np.ndarray,
    gain: np.float32,
    row_steps: np.ndarray,
    column_steps: np.ndarray,
    base: np.ndarray,
    weight_kind: int,
    weights: np.ndarray,
    first: int,
    last: int,
) -> None:
    """weights: get base + value, added in float32, and base + 0 where there is no entry, of the
    rows from `first` to `last`.

    column_steps: float32 `[in]`, where rows have steps. base: the bits of floats of the kind
    `weight_kind`, `[out, in]`, or `[0, in]` for zeros. weights: alike.
    """
    width = weights.shape[1]
    cells = (width + (1 << low) - 1) >> low
    places, found = np.empty(width, np.int32), np.empty(width, np.float32)
    zero = np.float32(0)
    for row in range(first, last):
        start, end = starts[row], starts[row + 1]
        count = _read_places(
            start, start + row * cells, end + (row + 1) * cells, low, marks, columns, places
        )
        _read_values(
            row, start, count, values, kind, bits, levels, scales, owners, firsts, gain, found
        )
        if base.size == 0:
            weights[row] = 0
        elif weight_kind == FLOAT32:  # in vectors
            for place in range(width):
                below = float_of(np.uint32(base[row, place]))
                weights[row, place] = bits_of(np.float32(below + zero))
        else:
            for place in range(width):
                below = widen(base[row, place], weight_kind)
                weights[row, place] = narrow(np.float32(below + zero), weight_kind)
        for number in range(count):
            place, value = places[number], found[number]
            if row_steps.size:
                value = np.float32(np.float32(value * row_steps[row]) * column_steps[place])
            below = widen(base[row, place], weight_kind) if base.size else zero
            weights[row, place] = narrow(np.float32(value + below), weight_kind)

"""Values to codes and back, a block at a time.

rows: float32 `[r, in]`, or longer, padded. size: values in a block; the last one of a row may be
shorter. scales, offsets: float32 `[r, blocks]`; offsets `[0, 0]` where there are none. table,
borders, bins, fine: as of `levels`. codes: uint8 `[r, in]`.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    bits_of,
    float_of,
    narrow,
    widen,
)
from ders_core.compute.kernels.levels import nearest, nearest_even
from ders_core.compute.kernels.loop import loop, part
from ders_core.compute.kernels.planes import unpack, unpack_trits
from ders_core.compute.kernels.sums import halved_apart


@loop
def encode(
    rows: np.ndarray,
    size: int,
    scales: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    codes: np.ndarray,
) -> None:
    """codes: get those nearest to the values."""
    moved = np.empty(size, np.float32)
    for row in range(rows.shape[0]):
        for block in range(scales.shape[1]):
            begin = block * size
            end = min(begin + size, codes.shape[1])
            scale = scales[row, block]
            offset = offsets[row, block] if offsets.shape[0] > 0 else np.float32(0)
            step, found = scale if scale > np.float32(0) else np.float32(1), codes[row, begin:end]
            if borders.size == 0:
                nearest_even(rows[row, begin:end], offset, step, table, found)
                continue
            for place in range(end - begin):
                moved[place] = rows[row, begin + place] - offset
            nearest(moved[: end - begin], step, table, borders, bins, fine, found)


@loop
def factors(
    rows: np.ndarray,
    codes: np.ndarray,
    size: int,
    weights: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    tiny: np.float32,
    found: np.ndarray,
) -> None:
    """found: float32 `[r, blocks]`, gets what each block is to be multiplied by for a gain of 1.
    weights: of columns, float32 `[in]`, or `[0]` for 1."""
    padded = (size + 3) // 4 * 4
    weighed, terms = np.zeros(padded, np.float32), np.empty(padded, np.float32)
    for row in range(rows.shape[0]):
        for block in range(scales.shape[1]):
            begin = block * size
            count = min(begin + size, codes.shape[1]) - begin
            scale = scales[row, block]
            offset = offsets[row, block] if offsets.shape[0] > 0 else np.float32(0)
            largest = tiny
            for place in range(count):
                largest = max(largest, abs(rows[row, begin + place]))
            for place in range(padded):
                terms[place] = 0
            for place in range(count):
                unit = np.float32(rows[row, begin + place] / largest)
                weight = weights[begin + place] if weights.size > 0 else np.float32(1)
                weighed[place] = unit * weight
                terms[place] = unit * weighed[place]
            energy = halved_apart(terms, padded)
            for place in range(padded):
                terms[place] = 0
            for place in range(count):
                level = table[codes[row, begin + place]]
                decoded = np.float32(np.float32(level * scale) + offset)
                terms[place] = np.float32(decoded / largest) * weighed[place]
            shared = halved_apart(terms, padded)
            is_usual = shared > np.float32(0) and energy > np.float32(0)
            found[row, block] = energy / shared if is_usual else np.float32(1)


@part
def _decode_even(
    codes: np.ndarray,
    lowest: np.float32,
    scale: np.float32,
    base: np.ndarray,
    base_kind: int,
    weights: np.ndarray,
) -> None:
    """weights: bits of float32, get base + (code + lowest) · scale. base: of BFLOAT16 or FLOAT32.
    In vectors, for what each of the two is a loop of its own."""
    if base_kind == BFLOAT16:
        for place in range(codes.size):
            level = np.float32(np.float32(np.int32(codes[place])) + lowest)
            below = float_of(np.uint32(np.uint32(base[place]) << np.uint32(16)))
            weights[place] = bits_of(np.float32(np.float32(level * scale) + below))
    else:
        for place in range(codes.size):
            level = np.float32(np.float32(np.int32(codes[place])) + lowest)
            below = float_of(np.uint32(base[place]))
            weights[place] = bits_of(np.float32(np.float32(level * scale) + below))


@part
def _levels(
    codes: np.ndarray, table: np.ndarray, is_uniform: bool, scale: np.float32, deltas: np.ndarray
) -> None:
    """deltas: float32, get the codes' levels times the scale."""
    if is_uniform:  # in vectors
        lowest = table[0]
        for place in range(codes.size):
            level = np.float32(np.float32(np.int32(codes[place])) + lowest)
            deltas[place] = np.float32(level * scale)
    else:
        for place in range(codes.size):
            deltas[place] = table[codes[place]] * scale


@part
def _add_onto(
    deltas: np.ndarray, base: np.ndarray, base_kind: int, kind: int, weights: np.ndarray
) -> None:
    """weights: get base + delta; both of the usual kind in vectors."""
    if kind == BFLOAT16 and base_kind == BFLOAT16:
        for place in range(deltas.size):
            below = float_of(np.uint32(np.uint32(base[place]) << np.uint32(16)))
            weights[place] = narrow(np.float32(deltas[place] + below), BFLOAT16)
    elif kind == base_kind:
        for place in range(deltas.size):
            value = np.float32(deltas[place] + widen(base[place], kind))
            weights[place] = narrow(value, kind)
    else:
        for place in range(deltas.size):
            value = np.float32(deltas[place] + widen(base[place], base_kind))
            weights[place] = narrow(value, kind)


@loop
def decode(
    packed: np.ndarray,
    bits: int,
    first: int,
    stride: int,
    size: int,
    scales: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    is_uniform: bool,
    base: np.ndarray,
    base_kind: int,
    kind: int,
    weights: np.ndarray,
) -> None:
    """weights: bits of floats of that kind `[r, in]`, get base + level · scale + offset.

    packed: uint8, the codes of a matrix; bits: 0 for trits. first: the first of these rows, such
    that as many values before it fill bytes. stride: bytes of a plane. base: bits of floats
    `[r, in]` of its kind, `[0, in]` for a base of zeros.
    """
    rows, width = weights.shape
    many = 8 if bits > 0 else 5
    many = 1 if width % many == 0 else many  # rows that fill bytes
    codes, deltas = np.empty(many * width, np.uint8), np.empty(size, np.float32)
    lowest, is_even = table[0], is_uniform and offsets.shape[0] == 0
    is_wide = kind == FLOAT32 and base_kind != FLOAT16 and base.shape[0] > 0
    for begin in range(0, rows, many):
        here = min(many, rows - begin)
        if bits > 0:
            unpack(packed, bits, (first + begin) * width, stride, codes[: here * width])
        else:
            unpack_trits(packed, (first + begin) * width, codes[: here * width])
        for row in range(here):
            for block in range(scales.shape[1]):
                start = block * size
                end = min(start + size, width)
                coded = codes[row * width + start : row * width + end]
                scale, out = scales[begin + row, block], weights[begin + row, start:end]
                if is_even and is_wide:
                    below = base[begin + row, start:end]
                    _decode_even(coded, lowest, scale, below, base_kind, out)
                    continue
                found = deltas[: end - start]
                _levels(coded, table, is_uniform, scale, found)
                if offsets.shape[0] > 0:
                    offset = offsets[begin + row, block]
                    for place in range(found.size):
                        found[place] += offset
                if base.shape[0] > 0:
                    below = base[begin + row, start:end]
                    _add_onto(found, below, base_kind, kind, out)
                elif kind == FLOAT32:
                    for place in range(found.size):
                        out[place] = bits_of(found[place])
                else:
                    for place in range(found.size):
                        out[place] = narrow(found[place], kind)

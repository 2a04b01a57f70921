"""Weights to scales and packed codes in one pass, a few rows at a time that stay in cache."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.codes import encode, factors
from ders_core.compute.kernels.differences import subtract
from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.planes import pack, pack_trits
from ders_core.compute.kernels.scales import Search, best_scales

VALUES = 1 << 14
"""At a time, or as many rows as fill whole bytes."""


@loop
def quantize(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    heights: np.ndarray,
    search: Search,
    of_columns: np.ndarray,
    target: np.float32,
    tiny: np.float32,
    stored: np.ndarray,
    stored_kind: int,
    bits: int,
    packed: np.ndarray,
) -> None:
    """stored: bits of floats `[out, blocks]` of `stored_kind`, get the scales; packed: uint8, gets
    the codes, of no bits as trits.

    weights, base: bits of floats `[out, in]` of a kind of `floats`; blocks fill rows. heights: as
    `best_scales` takes weights. of_columns: the weight of each column, float32 `[in]`, or `[0]` for
    1. target: the gain that scales are multiplied for, 0 to leave them. tiny: as of `factors`.
    """
    table, borders, bins, fine = search[:4]
    out, width = weights.shape
    count = stored.shape[1]
    size, stride = width // count, (out * width + 7) // 8
    digits = 8 if bits > 0 else 5
    together = 1 if width % digits == 0 else digits  # rows that fill bytes
    many = max(VALUES // (width * together), 1) * together
    desk, numbers = np.empty(many * width, np.float32), np.empty(many * width, np.uint8)
    found, multiples = np.empty(many * count, np.float32), np.empty((many, count), np.float32)
    offsets = np.empty((0, 0), np.float32)
    for begin in range(0, out, many):
        here = min(many, out - begin)
        deltas, codes = desk[: here * width], numbers[: here * width]
        subtract(
            weights[begin : begin + here].reshape(-1),
            base[begin : begin + here].reshape(-1),
            kind,
            deltas,
        )
        scales = found[: here * count]
        best_scales(deltas.reshape(here * count, size), heights, *search, scales)
        for place in range(scales.size):
            scales[place] = widen(narrow(scales[place], stored_kind), stored_kind)
        rows, of_rows = deltas.reshape(here, width), scales.reshape(here, count)
        coded = codes.reshape(here, width)
        encode(rows, size, of_rows, offsets, table, borders, bins, fine, coded)
        if target > np.float32(0):
            factors(rows, coded, size, of_columns, of_rows, offsets, table, tiny, multiples[:here])
            for row in range(here):
                for block in range(count):
                    factor = np.float32(target * multiples[row, block])
                    of_rows[row, block] = np.float32(of_rows[row, block] * factor)
        for row in range(here):
            for block in range(count):
                stored[begin + row, block] = narrow(of_rows[row, block], stored_kind)
        if bits > 0:
            pack(codes, bits, packed, begin * width, stride)
        else:
            pack_trits(codes, packed, begin * width)

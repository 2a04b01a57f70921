"""Weights to scales and packed codes in one pass, a few rows at a time that stay in cache."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.codes import encode, factors
from ders_core.compute.kernels.differences import subtract_rows
from ders_core.compute.kernels.kept_scales import Kept, keep
from ders_core.compute.kernels.lines import LineSearch, best_lines
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.planes import pack, pack_trits
from ders_core.compute.kernels.scales import Search, best_scales

VALUES = 1 << 14
"""At a time, or as many rows as fill whole bytes."""


@loop
def multiply(values: np.ndarray, factors: np.ndarray, target: np.float32) -> None:
    """values: float32 `[r, blocks]`, are multiplied by factors, alike, times a target."""
    for row in range(values.shape[0]):
        for block in range(values.shape[1]):
            factor = np.float32(target * factors[row, block])
            values[row, block] = np.float32(values[row, block] * factor)


@loop
def quantize(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    first: int,
    last: int,
    size: int,
    heights: np.ndarray,
    search: Search,
    lines: LineSearch,
    of_columns: np.ndarray,
    target: np.float32,
    tiny: np.float32,
    kept: Kept,
    bits: int,
    packed: np.ndarray,
) -> None:
    """kept: gets the scales, and offsets if it has room for them, of the rows from `first` up to
    `last`; packed: uint8, gets their codes, of no bits as trits.

    weights, base: bits of floats `[out, in]` of a kind of `floats`; base `[0, in]` for one of
    zeros. size: values in a block; the last one of a row may be shorter. heights: as `best_scales`
    takes weights, with 0 for what a short block lacks. of_columns: the weight of each column,
    float32 `[in]`, or `[0]` for 1. target: the gain that scales are multiplied for, 0 to leave
    them. tiny: as of `factors`.
    """
    table, borders, bins, fine = search[:4]
    out, width = weights.shape
    count, stride = (width + size - 1) // size, (out * width + 7) // 8
    padded, of_lines = count * size, kept[3].shape[0] > 0
    digits = 8 if bits > 0 else 5
    together = 1 if width % digits == 0 else digits  # rows that fill bytes
    many = max(VALUES // (width * together), 1) * together
    desk, numbers = np.zeros((many, padded), np.float32), np.empty(many * width, np.uint8)
    found, multiples = np.empty((many, count), np.float32), np.empty((many, count), np.float32)
    moved = np.empty((many if of_lines else 0, count if of_lines else 0), np.float32)
    for begin in range(first, last, many):
        here = min(many, last - begin)
        rows, scales, offsets = desk[:here], found[:here], moved[:here]
        codes = numbers[: here * width]
        coded = codes.reshape(here, width)
        subtract_rows(weights[begin : begin + here], base[begin : begin + here], kind, rows)
        blocks = rows.reshape(here * count, size)
        if of_lines:
            best_lines(blocks, heights, *lines, scales.reshape(-1), offsets.reshape(-1))
        else:
            best_scales(blocks, heights, *search, scales.reshape(-1))
        keep(scales, offsets, kept, begin)
        encode(rows, size, scales, offsets, table, borders, bins, fine, coded)
        if target > np.float32(0):
            factors(rows, coded, size, of_columns, scales, offsets, table, tiny, multiples[:here])
            multiply(scales, multiples[:here], target)
            multiply(offsets, multiples[:here], target)
            keep(scales, offsets, kept, begin)
        if bits > 0:
            pack(codes, bits, packed, begin * width, stride)
        else:
            pack_trits(codes, packed, begin * width)

"""Weights normalised by the scales of their blocks, and what levels for these are learnt from.

weights, base, kind, size, heights: as of `quantize`. scales: float32 `[out, blocks]`.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.differences import subtract_rows
from ders_core.compute.kernels.even_levels import SIZES
from ders_core.compute.kernels.even_lines import highest, lowest_negated
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.scales import Search, best_scales

VALUES = 1 << 14
"""At a time, or one row."""


@part_apart
def extremes_of(values: np.ndarray, begin: int, count: int) -> tuple[np.float32, np.float32]:
    """The least and the largest of so many values from one on."""
    piece = values[begin : begin + count]
    if count in SIZES:
        low = np.float32(-lowest_negated(piece, piece, False, None))
        return low, highest(piece, piece, False, None)
    low, high = piece[0], piece[0]
    for place in range(1, count):
        low, high = min(low, piece[place]), max(high, piece[place])
    return low, high


@loop
def extremes(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    size: int,
    heights: np.ndarray,
    search: Search,
    scales: np.ndarray,
) -> tuple[np.float32, np.float32]:
    """The least and the largest normalised value; no number where one is none. scales: are filled,
    as by `best_scales`.

    To divide by a scale keeps the order, so that it is enough to divide what is least and largest
    in a block.
    """
    (out, width), count = weights.shape, scales.shape[1]
    many = max(VALUES // width, 1)
    desk = np.zeros((many, count * size), np.float32)
    least, largest = np.float32(np.inf), np.float32(-np.inf)
    for begin in range(0, out, many):
        here = min(many, out - begin)
        rows, of_rows = desk[:here], scales[begin : begin + here]
        subtract_rows(weights[begin : begin + here], base[begin : begin + here], kind, rows)
        best_scales(rows.reshape(here * count, size), heights, *search, of_rows.reshape(-1))
        for row in range(here):
            for block in range(count):
                start = block * size
                low, high = extremes_of(rows[row], start, min(size, width - start))
                scale = of_rows[row, block]
                step = scale if scale > np.float32(0) else np.float32(1)
                low, high = np.float32(low / step), np.float32(high / step)
                least = low if low < least or np.isnan(low) else least
                largest = high if high > largest or np.isnan(high) else largest
    return least, largest


@loop
def sum_up(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    size: int,
    scales: np.ndarray,
    of_columns: np.ndarray,
    low: np.float32,
    fine: np.float32,
    sums: np.ndarray,
) -> None:
    """sums: float64 `[bins, 2]`, get the weights of the normalised values in each bin added, and
    these times their weights, one after another. of_columns: the weight of each column, float32
    `[in]`, or `[0]` for 1. low, fine: where bins begin, and how many there are to 1."""
    out, width = weights.shape
    desk, places = np.empty((1, width), np.float32), np.empty(width, np.uint32)
    values, top = desk[0], np.float32(sums.shape[0] - 1)
    for row in range(out):
        subtract_rows(weights[row : row + 1], base[row : row + 1], kind, desk)
        for block in range(scales.shape[1]):
            scale = scales[row, block]
            step = scale if scale > np.float32(0) else np.float32(1)
            for column in range(block * size, min(block * size + size, width)):
                values[column] = values[column] / step
        for column in range(width):
            place = np.float32(np.float32(values[column] - low) * fine)
            place = place if place > np.float32(0) else np.float32(0)  # also if it is no number
            places[column] = np.uint32(np.int32(place if place < top else top))
        for column in range(width):
            weight = np.float64(of_columns[column]) if of_columns.size > 0 else 1.0
            sums[places[column], 0] += weight
            sums[places[column], 1] += np.float64(values[column]) * weight

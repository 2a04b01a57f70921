"""Gaps between entries that do not have the common level: see `codecs.coding.runs`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def find(symbols: np.ndarray, common: np.uint16, gaps: np.ndarray, others: np.ndarray) -> None:
    """Fill gaps, int64, with how many common symbols come before each other one, and others,
    uint16, with those; both one longer than there are others."""
    count, gap = np.uint64(0), np.int64(0)
    for place in range(symbols.size):
        symbol = symbols[place]
        other = np.int64(symbol != common)
        gaps[count], others[count] = gap, symbol
        count += np.uint64(other)
        gap = (gap + 1) * (1 - other)


@loop
def sum_up(
    symbols: np.ndarray, low: np.ndarray, low_bits: int, most: int, places: np.ndarray
) -> None:
    """Fill places, int64, one longer than low: of the entries after the gaps, whose high parts are
    symbols, uint16, and whose low parts are low, uint16."""
    shift, last = np.int64(low_bits), np.uint16(most)
    count, place, high = np.uint64(0), np.int64(-1), np.int64(0)
    for number in range(symbols.size):
        symbol = symbols[number]
        high += np.int64(symbol)
        if symbol < last:
            place += (high << shift) + np.int64(low[count]) + 1
            places[count] = place
            count += np.uint64(1)
            high = np.int64(0)

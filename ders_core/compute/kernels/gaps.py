"""Gaps between entries that do not have the common level: see `codecs.coding.runs`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def find(symbols: np.ndarray, common: np.uint16, gaps: np.ndarray, others: np.ndarray) -> None:
    """Fill gaps, int64, with how many common symbols come before each other one, and others,
    uint16, with those."""
    count, gap = np.uint64(0), 0
    words = symbols[: symbols.size // 4 * 4].view(np.uint64)
    commons = np.uint64(np.uint64(common) * np.uint64(0x0001000100010001))
    for number in range(words.size + 1):
        begin = 4 * number
        end = begin + 4 if number < words.size else symbols.size
        if number < words.size and words[number] == commons:
            gap += 4
            continue
        for place in range(begin, end):
            symbol = symbols[place]
            if symbol == common:
                gap += 1
            else:
                gaps[count], others[count] = gap, symbol
                count += np.uint64(1)
                gap = 0


@loop
def count_pieces(gaps: np.ndarray, low_bits: int, most: int) -> int:
    """How many symbols the high parts of gaps, int64, become."""
    count = gaps.size
    for number in range(gaps.size):
        high = gaps[number] >> low_bits
        while high >= most:
            count += 1
            high -= most
    return count


@loop
def split(gaps: np.ndarray, low_bits: int, most: int, symbols: np.ndarray, low: np.ndarray) -> None:
    """Fill symbols, uint16, with the high parts in pieces, and low, uint16."""
    count, mask = np.uint64(0), (1 << low_bits) - 1
    for number in range(gaps.size):
        high = gaps[number] >> low_bits
        low[number] = gaps[number] & mask
        while high >= most:
            symbols[count] = most
            count += np.uint64(1)
            high -= most
        symbols[count] = high
        count += np.uint64(1)


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

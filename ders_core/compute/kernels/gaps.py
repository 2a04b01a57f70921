"""Gaps between entries that do not have the common level: see `codecs.coding.runs`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop, part


@part
def put_pieces(left: int, most: int, high: np.ndarray, filled: np.uint64) -> np.uint64:
    """Put a high part into `high` from `filled` on, in pieces of at most `most`, the last of which
    is less; returns where the next one goes."""
    while left >= most:
        high[filled] = most
        filled += np.uint64(1)
        left -= most
    high[filled] = left
    return filled + np.uint64(1)


@loop
def find(
    symbols: np.ndarray,
    common: np.generic,
    same: np.uint64,
    low_bits: int,
    most: int,
    others: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
) -> tuple[int, int]:
    """Fill others with the symbols, uint8 or uint16, that are not the common one; high, uint8, with
    the high parts of the gaps before them in pieces; and low, unless it is empty, with their low
    parts. same: all symbols of a word are the common one. Returns how many pieces there are, and
    what the high parts add up to."""
    count, gap, units, each = np.uint64(0), 0, 0, 8 // symbols.itemsize
    filled, mask = np.uint64(0), (1 << low_bits) - 1
    words = symbols[: symbols.size // each * each].view(np.uint64)
    for number in range(words.size + 1):
        begin = each * number
        end = begin + each if number < words.size else symbols.size
        if number < words.size and words[number] == same:
            gap += each
            continue
        for place in range(begin, end):
            symbol = symbols[place]
            if symbol == common:
                gap += 1
                continue
            others[count] = symbol
            if low.size:
                low[count] = gap & mask
            count += np.uint64(1)
            left = gap >> low_bits
            units += left
            filled = put_pieces(left, most, high, filled)
            gap = 0
    return int(np.int64(filled)), units


@loop
def split(pieces: np.ndarray, largest: int, most: int, high: np.ndarray) -> int:
    """Fill high with the same high parts in smaller pieces, of which it returns how many there are.
    largest: a piece that another one follows."""
    filled, left = np.uint64(0), 0
    for number in range(pieces.size):
        piece = pieces[number]
        left += piece
        if piece == largest:
            continue
        filled = put_pieces(left, most, high, filled)
        left = 0
    return int(np.int64(filled))


@loop
def sum_up(
    symbols: np.ndarray,
    low: np.ndarray,
    low_bits: int,
    most: int,
    largest: int,
    places: np.ndarray,
) -> None:
    """Fill places, at most `largest`, with those of the entries after the gaps, whose high parts
    are symbols, and whose low parts are low; without low bits it is empty."""
    shift, last = np.int64(low_bits), np.uint16(most)
    count, place, high = np.uint64(0), np.int64(-1), np.int64(0)
    for number in range(symbols.size):
        symbol = symbols[number]
        high += np.int64(symbol)
        if symbol < last:
            place += (high << shift) + 1
            if low.size:
                place += np.int64(low[count])
            places[count] = min(place, largest)
            count += np.uint64(1)
            high = np.int64(0)

"""Rare symbols, which have a sequence of their own: see `codecs.coding.level_tables`.

symbols: uint16 `[n]`. rare: uint16, the rare ones in order. escape: the symbol in their places.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop, part_apart

BLOCK = 1 << 10
"""Numbers of 64 bits, four symbols each, whose rare ones are counted at once."""

WORDS = 64
"""Codes at a time that are looked at together."""

ONES, HIGH, LOW = (
    np.uint64(0x0001000100010001),
    np.uint64(0x8000800080008000),
    np.uint64(0x7FFF7FFF7FFF7FFF),
)


@loop
def pick(
    codes: np.ndarray, is_rare: np.ndarray, first: np.uint16, last: np.uint16, found: np.ndarray
) -> None:
    """Put those of codes that are rare in order into found, uint16, one longer. is_rare: bool, of
    each code; none from first to last is."""
    following, width = np.uint64(0), np.uint16(last - first)
    for begin in range(0, codes.size, WORDS):
        part, outside = codes[begin : begin + WORDS], np.uint16(0)
        for place in range(part.size):
            apart = np.uint16(part[place] - first)
            outside = max(outside, apart)
        if outside > width:
            for place in range(part.size):
                code = part[place]
                found[following] = code
                following += np.uint64(is_rare[code])


@part_apart
def flags(word: np.uint64, escapes: np.uint64) -> np.uint64:
    """1 in each of four symbols that is the escape, 0 in others."""
    differing = np.uint64(word ^ escapes)
    carried = np.uint64(np.uint64(differing & LOW) + LOW)  # the high bit where a low one is set
    return np.uint64(np.uint64(~np.uint64(carried | differing) & HIGH) >> np.uint64(15))


@loop
def count(symbols: np.ndarray, escape: np.uint16) -> int:
    """How many are rare."""
    total, words = 0, symbols[: symbols.size // 4 * 4].view(np.uint64)
    escapes = np.uint64(np.uint64(escape) * ONES)
    for begin in range(0, words.size, BLOCK):
        block, found = words[begin : begin + BLOCK], np.uint64(0)
        for number in range(block.size):
            found += flags(block[number], escapes)
        total += int(np.uint64(found * ONES) >> np.uint64(48))
    for place in range(4 * words.size, symbols.size):
        total += int(symbols[place] == escape)
    return total


@loop
def put(symbols: np.ndarray, escape: np.uint16, rare: np.ndarray) -> None:
    """Put rare ones in their places, of which there are as many."""
    following, whole = np.uint64(0), symbols.size // 4 * 4
    escapes = np.uint64(np.uint64(escape) * ONES)
    words = symbols[:whole].view(np.uint64)
    for number in range(words.size):
        if flags(words[number], escapes):
            for place in range(4 * number, 4 * number + 4):
                if symbols[place] == escape:
                    symbols[place] = rare[following]
                    following += np.uint64(1)
    for place in range(whole, symbols.size):
        if symbols[place] == escape:
            symbols[place] = rare[following]
            following += np.uint64(1)

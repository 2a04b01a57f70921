"""Rare symbols, which have a sequence of their own: see `codecs.coding.level_tables`.

rare: the rare symbols in order. escape: the symbol in their places.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop

BLOCK = 1 << 12
"""Symbols whose rare ones are counted at once."""

WORDS = 64
"""Codes at a time that are looked at together."""


@loop
def pick(codes: np.ndarray, is_rare: np.ndarray, first: int, last: int, found: np.ndarray) -> None:
    """Put those of codes that are rare in order into found, one longer; all uint8 or uint16.
    is_rare: bool, of each code; none from first to last is."""
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


@loop
def count(symbols: np.ndarray, escape: np.generic) -> int:
    """How many are rare. symbols, escape: uint8 or uint16."""
    total = 0
    for begin in range(0, symbols.size, BLOCK):
        block, found = symbols[begin : begin + BLOCK], np.uint16(0)
        for place in range(block.size):
            found += np.uint16(block[place] == escape)
        total += int(found)
    return total


@loop
def put(
    symbols: np.ndarray, words: np.ndarray, escape: np.generic, ones: np.uint64, rare: np.ndarray
) -> None:
    """Put rare ones in their places, of which there are as many. symbols, escape, rare: uint8 or
    uint16. words: uint32 or uint64, the same memory, four symbols each, but for the last ones.
    ones: the lowest bit of each symbol in a word."""
    following, escapes = np.uint64(0), np.uint64(np.uint64(escape) * ones)
    high = np.uint64(ones << np.uint64(8 * symbols.itemsize - 1))
    low = np.uint64(high - ones)
    for number in range(words.size):
        differing = np.uint64(np.uint64(words[number]) ^ escapes)
        carried = np.uint64(np.uint64(differing & low) + low)  # the high bit where a low one is set
        if np.uint64(~np.uint64(carried | differing) & high):
            for place in range(4 * number, 4 * number + 4):
                if symbols[place] == escape:
                    symbols[place] = rare[following]
                    following += np.uint64(1)
    for place in range(4 * words.size, symbols.size):
        if symbols[place] == escape:
            symbols[place] = rare[following]
            following += np.uint64(1)

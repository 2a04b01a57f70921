"""Low bits of differences, which a stream has one after another as they are: put below upper parts
again."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import part_apart

WORD_BITS = 32
"""Of a number with noise, 2^5."""


@part_apart
def find_noisy(context: np.ndarray, lows: np.ndarray, places: np.ndarray) -> int:
    """Fill places, uint32, with where weights have low bits; how many these are. −1, and not all
    places, if they may be many: those of the first context that has some and of all after it."""
    first, count = np.uint8(0), np.uint64(0)
    while lows[first] == 0:
        first += np.uint8(1)
    for place in range(context.size):
        count += np.uint64(context[place] >= first)
    if count > context.size // 2:
        return -1
    count, noisy = np.uint64(0), (lows > 0).astype(np.uint64)
    for place in range(context.size):
        places[count] = place
        count += noisy[context[place]]
    return int(np.int64(count))


@part_apart
def pair_up(noise: np.ndarray, first: np.uint64, pairs: np.ndarray) -> None:
    """Fill pairs, uint64: two numbers with noise in one, from a number on."""
    some = noise[first : first + np.uint64(pairs.size + 1)]
    for number in range(pairs.size):
        high = np.uint64(np.uint64(some[number + 1]) << np.uint64(WORD_BITS))
        pairs[number] = np.uint64(high | np.uint64(some[number]))


@part_apart
def add_some_noise(
    context: np.ndarray,
    lows: np.ndarray,
    pairs: np.ndarray,
    bit: np.uint64,
    places: np.ndarray,
    difference: np.ndarray,
) -> np.uint64:
    """Put the low bits, from a bit of pairs on, below upper parts at places; returns the bit after
    them."""
    wide, one = difference.dtype.type, np.uint64(1)
    for place in places:
        low = np.uint64(lows[context[place]])
        part = np.uint64(pairs[np.uint64(bit >> np.uint64(5))] >> np.uint64(bit & np.uint64(31)))
        mask = np.uint64(np.uint64(one << low) - one)
        upper = np.int64(difference[place]) << np.int64(low)
        difference[place] = wide(upper | np.int64(part & mask))
        bit += low
    return bit


@part_apart
def add_noise(
    context: np.ndarray,
    lows: np.ndarray,
    pairs: np.ndarray,
    bit: np.uint64,
    widths: np.ndarray,
    parts: np.ndarray,
    difference: np.ndarray,
) -> np.uint64:
    """The same at all places. widths, parts: room as of difference."""
    wide = difference.dtype.type
    for place in range(context.size):
        low = lows[context[place]]
        part = np.uint64(pairs[np.uint64(bit >> np.uint64(5))] >> np.uint64(bit & np.uint64(31)))
        parts[place], widths[place] = wide(part), wide(low)
        bit += np.uint64(low)
    for place in range(context.size):
        mask = wide(wide(wide(1) << widths[place]) - wide(1))
        upper = wide(difference[place] << widths[place])
        difference[place] = wide(upper | wide(parts[place] & mask))
    return bit


@part_apart
def add_low_bits(
    context: np.ndarray,
    lows: np.ndarray,
    noise: np.ndarray,
    bit: np.uint64,
    places: np.ndarray,
    pairs: np.ndarray,
    room: np.ndarray,
    difference: np.ndarray,
) -> np.uint64:
    """Put the low bits of a block, from a bit of noise on, below upper parts; returns the bit after
    them. lows: how many each context has. places: uint32, room for one more than weights. pairs:
    uint64, room for as many numbers as bits of the block are in, and one more. room: as difference
    `[3, weights]`; the first of them may be it."""
    word = np.uint64(bit >> np.uint64(5))
    bit -= np.uint64(word << np.uint64(5))
    pair_up(noise, word, pairs)
    count = find_noisy(context, lows, places)
    if count < 0:
        bit = add_noise(context, lows, pairs, bit, room[1], room[2], difference)
    else:
        bit = add_some_noise(context, lows, pairs, bit, places[:count], difference)
    return np.uint64(bit + np.uint64(word << np.uint64(5)))

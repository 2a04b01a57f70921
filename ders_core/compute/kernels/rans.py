"""Interleaved asymmetric numeral systems: see `codecs.coding.rans`, which has the same in numpy.

states: uint32 `[lanes]`, are changed. info: uint32 `[symbols]`, a symbol's frequency, and above 16
bits the first of its slots. Frequencies sum to 2^bits, bits ≤ 16, and none is 2^16. symbols: uint16
`[n]`, each of a frequency above 0.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def push(
    states: np.ndarray,
    info: np.ndarray,
    inverse: np.ndarray,
    bits: int,
    symbols: np.ndarray,
    words: np.ndarray,
) -> int:
    """words: uint16, one more than symbols; is filled from the end. Returns where they begin.

    inverse: uint64, ⌈2^(32 + bits) / frequency⌉ of each symbol: x / frequency is
    (x · inverse) >> (32 + bits) for every state x that is pushed to.
    """
    one, lanes, left = np.uint64(1), np.uint64(states.size), np.uint64(symbols.size)
    shift, top = np.uint64(32 + bits), np.uint32(32 - bits)
    low_half, half = np.uint32(0xFFFF), np.uint32(16)
    size = np.uint32(1 << bits)
    at = np.uint64(words.size)
    while left > 0:
        rest = left % lanes
        count = rest if rest else lanes
        for number in range(count):
            lane = count - one - np.uint64(number)
            left -= one
            symbol = symbols[left]
            entry, state = info[symbol], states[lane]
            frequency = np.uint32(entry & low_half)
            full = np.uint32(np.uint32(state >> top) >= frequency)
            words[at - one] = np.uint16(state & low_half)
            at -= np.uint64(full)
            state = np.uint32(state >> np.uint32(full << np.uint32(4)))
            quotient = np.uint32((np.uint64(state) * inverse[symbol]) >> shift)
            added = np.uint32(quotient * np.uint32(size - frequency))
            states[lane] = np.uint32(np.uint32(state + np.uint32(entry >> half)) + added)
    return int(np.int64(at))


@loop
def pop(
    states: np.ndarray,
    slots: np.ndarray,
    info: np.ndarray,
    bits: int,
    words: np.ndarray,
    begin: int,
    end: int,
    symbols: np.ndarray,
) -> int:
    """Fill `symbols` from the words `[begin, end)`; returns where the words that are left begin, −1
    where there are too few.

    words: uint16, at least `lanes` longer than `end`: those are read, and not used. slots: uint16
    `[2^bits]`, the symbol of each slot.
    """
    one, lanes, count = np.uint64(1), np.uint64(states.size), np.uint64(symbols.size)
    mask, shift = np.uint32((1 << bits) - 1), np.uint32(bits)
    low_half, half, least = np.uint32(0xFFFF), np.uint32(16), np.uint32(1 << 16)
    at, last, place = np.uint64(begin), np.uint64(end), np.uint64(0)
    while place < count:
        for lane in range(min(lanes, count - place)):
            state = states[lane]
            slot = np.uint32(state & mask)
            symbol = slots[slot]
            entry = info[symbol]
            begun = np.uint32(slot - np.uint32(entry >> half))
            state = np.uint32(np.uint32(entry & low_half) * np.uint32(state >> shift) + begun)
            small = np.uint32(state < least)
            longer = np.uint32(np.uint32(state << half) | np.uint32(words[at]))
            states[lane] = longer if small else state
            at += np.uint64(small)
            symbols[place] = symbol
            place += one
        if at > last:
            return -1
    return int(np.int64(at))


@loop
def push_mixed(
    states: np.ndarray,
    info: np.ndarray,
    inverse: np.ndarray,
    bits: int,
    symbols: np.ndarray,
    contexts: np.ndarray,
    words: np.ndarray,
) -> int:
    """The same as `push` with several tables: info and inverse are `[contexts, symbols]`. contexts:
    uint8 `[n]`, which of them each symbol has."""
    one, lanes, left = np.uint64(1), np.uint64(states.size), np.uint64(symbols.size)
    shift, top = np.uint64(32 + bits), np.uint32(32 - bits)
    low_half, half = np.uint32(0xFFFF), np.uint32(16)
    size = np.uint32(1 << bits)
    at = np.uint64(words.size)
    while left > 0:
        rest = left % lanes
        count = rest if rest else lanes
        for number in range(count):
            lane = count - one - np.uint64(number)
            left -= one
            symbol, context = symbols[left], contexts[left]
            entry, state = info[context, symbol], states[lane]
            frequency = np.uint32(entry & low_half)
            full = np.uint32(np.uint32(state >> top) >= frequency)
            words[at - one] = np.uint16(state & low_half)
            at -= np.uint64(full)
            state = np.uint32(state >> np.uint32(full << np.uint32(4)))
            quotient = np.uint32((np.uint64(state) * inverse[context, symbol]) >> shift)
            added = np.uint32(quotient * np.uint32(size - frequency))
            states[lane] = np.uint32(np.uint32(state + np.uint32(entry >> half)) + added)
    return int(np.int64(at))


@loop
def pop_mixed(
    states: np.ndarray,
    slots: np.ndarray,
    info: np.ndarray,
    bits: int,
    words: np.ndarray,
    begin: int,
    end: int,
    contexts: np.ndarray,
    symbols: np.ndarray,
) -> int:
    """The same as `pop` with several tables: slots are `[contexts, 2^bits]`, info is
    `[contexts, symbols]`. contexts: uint8 `[n]`, which of them each symbol has."""
    one, lanes, count = np.uint64(1), np.uint64(states.size), np.uint64(symbols.size)
    mask, shift = np.uint32((1 << bits) - 1), np.uint32(bits)
    low_half, half, least = np.uint32(0xFFFF), np.uint32(16), np.uint32(1 << 16)
    at, last, place = np.uint64(begin), np.uint64(end), np.uint64(0)
    while place < count:
        for lane in range(min(lanes, count - place)):
            state, context = states[lane], contexts[place]
            slot = np.uint32(state & mask)
            symbol = slots[context, slot]
            entry = info[context, symbol]
            begun = np.uint32(slot - np.uint32(entry >> half))
            state = np.uint32(np.uint32(entry & low_half) * np.uint32(state >> shift) + begun)
            small = np.uint32(state < least)
            longer = np.uint32(np.uint32(state << half) | np.uint32(words[at]))
            states[lane] = longer if small else state
            at += np.uint64(small)
            symbols[place] = symbol
            place += one
        if at > last:
            return -1
    return int(np.int64(at))

"""Interleaved asymmetric numeral systems: see `codecs.coding.rans`, which has the same in numpy.

states: uint32 `[lanes]`, are changed. info: uint32 `[symbols]`, a symbol's frequency, and above 16
bits the first of its slots. Frequencies sum to 2^bits, bits ≤ 16, and none is 2^16. symbols: uint8
or uint16 `[n]`, each of a frequency above 0.
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
    end: int,
) -> int:
    """words: uint16, at least one more before the end than symbols; is filled from there backwards.
    Returns where they begin.

    inverse: uint64, ⌈2^(32 + bits) / frequency⌉ of each symbol: x / frequency is
    (x · inverse) >> (32 + bits) for every state x that is pushed to.
    """
    one, lanes, left = np.uint64(1), np.uint64(states.size), np.uint64(symbols.size)
    shift, top = np.uint64(32 + bits), np.uint32(32 - bits)
    low_half, half = np.uint32(0xFFFF), np.uint32(16)
    size = np.uint32(1 << bits)
    at = np.uint64(end)
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
def push_pieces(
    states: np.ndarray,
    info: np.ndarray,
    inverse: np.ndarray,
    bits: int,
    cells: np.ndarray,
    rare_info: np.ndarray,
    rare_inverse: np.ndarray,
    rare_bits: int,
    rare: np.ndarray,
    rare_ends: np.ndarray,
    size: int,
    words: np.ndarray,
    end: int,
) -> int:
    """Push so many cells at a time, and after each piece the rare ones of it, up to its end. words,
    end: as of `push`, one more than there are of both."""
    at = end
    for number in range(rare_ends.size - 1, -1, -1):
        first = rare_ends[number - 1] if number > 0 else 0
        some = rare[first : rare_ends[number]]
        at = push(states, rare_info, rare_inverse, rare_bits, some, words, at)
        some = cells[number * size : (number + 1) * size]
        at = push(states, info, inverse, bits, some, words, at)
    return at


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
    """The same as `pop` with several tables: slots are `[contexts, 2^bits]`. contexts: uint8
    `[n]`, which of them each symbol has."""
    lanes, count = np.uint64(states.size), np.uint64(symbols.size)
    mask, shift = np.uint32((1 << bits) - 1), np.uint32(bits)
    low_half, half, least = np.uint32(0xFFFF), np.uint32(16), np.uint32(1 << 16)
    at, last, place, flat = np.uint64(begin), np.uint64(end), np.uint64(0), slots.reshape(-1)
    while place < count:
        here = min(lanes, count - place)
        some, given = symbols[place : place + here], contexts[place : place + here]
        for lane in range(here):
            state = states[lane]
            slot = np.uint32(state & mask)
            symbol = flat[np.uint32(np.uint32(np.uint32(given[lane]) << shift) | slot)]
            entry = info[symbol]
            begun = np.uint32(slot - np.uint32(entry >> half))
            state = np.uint32(np.uint32(entry & low_half) * np.uint32(state >> shift) + begun)
            small = np.uint32(state < least)
            longer = np.uint32(np.uint32(state << half) | np.uint32(words[at]))
            states[lane] = longer if small else state
            at += np.uint64(small)
            some[lane] = symbol
        place += here
        if at > last:
            return -1
    return int(np.int64(at))

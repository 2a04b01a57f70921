"""Weights out of a base and coded differences: see `codecs.coding.weights_read`, which has the same
in numpy."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.float_counts import context_of, ordered
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.rans import pop_mixed

RARE = np.int64(-(1 << 62))
FAR, NONE = RARE + np.int64(1 << 40), RARE + np.int64(2 << 40)
NOISE = np.int64(0xFFFFFFFF)
LAST = np.uint64(31)
"""Of the bits of a number with noise."""


@part_apart
def find(cell: np.ndarray, uppers: np.ndarray, difference: np.ndarray, places: np.ndarray) -> int:
    """Fill difference with what cells stand for, and places, uint32, with where that is no number;
    how many these are."""
    count = np.uint64(0)
    for place in range(cell.size):
        upper = uppers[cell[place]]
        difference[place], places[count] = upper, place
        count += np.uint64(upper <= NONE)
    return int(np.int64(count))


@part_apart
def add_noise(
    context: np.ndarray, lows: np.ndarray, noise: np.ndarray, bit: np.uint64, difference: np.ndarray
) -> np.uint64:
    """Add the low bits, from a bit on, to differences; returns the bit after them."""
    masks, most = (np.int64(1) << lows) - 1, np.uint64(noise.size - 2)
    for place in range(context.size):
        number = min(np.uint64(bit >> np.uint64(5)), most)
        high = np.uint64(np.uint64(noise[number + np.uint64(1)]) << np.uint64(32))
        pair = np.uint64(np.uint64(high | np.uint64(noise[number])) >> np.uint64(bit & LAST))
        difference[place] |= np.int64(pair) & masks[context[place]]
        bit += np.uint64(lows[context[place]])
    return bit


@part_apart
def move(base: np.ndarray, difference: np.ndarray, half: int, weight: np.ndarray) -> int:
    """Fill weight with the floats that are so far from the base; how many there is none for."""
    wrong = 0
    for place in range(base.size):
        number = ordered(base[place], half) + difference[place]
        wrong += int((number < -half) | (number >= half))
        weight[place] = -half - 1 - number if number < 0 else number
    return wrong


@loop
def read(
    base: np.ndarray,
    half: int,
    fraction: int,
    mask: int,
    top: int,
    last: int,
    slots: np.ndarray,
    info: np.ndarray,
    uppers: np.ndarray,
    bits: int,
    rare_slots: np.ndarray,
    rare_info: np.ndarray,
    rare_uppers: np.ndarray,
    rare_bits: int,
    states: np.ndarray,
    words: np.ndarray,
    at: int,
    end: int,
    piece: int,
    lows: np.ndarray,
    far: np.ndarray,
    noise: np.ndarray,
    weight: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Fill weight, as base; returns where the words that are left begin, −1 where there are too
    few. base … last, lows: as of `float_counts`. slots, info, bits, states, words, at, end: as of
    `rans.pop_mixed`. uppers: int64, of each cell. far: int64, one more than may be outside. noise:
    uint32, two more than are used. ends: int64 `[3]`, gets how many numbers count no float, how
    many are outside, and how many bits are noise."""
    contexts, cells = np.empty(piece, np.uint8), np.empty(piece, np.uint16)
    differences, places = np.empty(piece, np.int64), np.empty(piece + 1, np.uint32)
    rare_contexts, rare_cells = np.empty(piece, np.uint8), np.empty(piece, np.uint16)
    tables, rare_tables = (slots, info, bits), (rare_slots, rare_info, rare_bits)
    wrong, far_count, bit, noisy = 0, 0, np.uint64(0), lows.max() > 0
    for begin in range(0, base.size, piece):
        start, filled = base[begin : begin + piece], weight[begin : begin + piece]
        context, cell = contexts[: start.size], cells[: start.size]
        for place in range(start.size):
            context[place] = context_of(start[place], fraction, mask, top, last)
        at = pop_mixed(states, *tables, words, at, end, context, cell)
        if at < 0:
            return at
        difference = differences[: start.size]
        count = find(cell, uppers, difference, places)
        if noisy:
            bit = add_noise(context, lows, noise, bit, difference)
        rare_count = np.uint64(0)
        for number in range(count):
            place = places[number]
            rare_contexts[rare_count] = context[place]
            rare_count += np.uint64(difference[place] & ~NOISE == RARE)
        rare = rare_cells[:rare_count]
        at = pop_mixed(states, *rare_tables, words, at, end, rare_contexts[:rare_count], rare)
        if at < 0:
            return at
        rare_count = np.uint64(0)
        for number in range(count):
            place = places[number]
            upper = difference[place] & ~NOISE
            if upper == RARE:
                upper = rare_uppers[rare[rare_count]]
                rare_count += np.uint64(1)
            if upper == FAR:
                upper = far[min(far_count, far.size - 1)] << lows[context[place]]
                far_count += 1
            difference[place] = upper | (difference[place] & NOISE)
        wrong += move(start, difference, half, filled)
    ends[0], ends[1], ends[2] = wrong, far_count, np.int64(bit)
    return at

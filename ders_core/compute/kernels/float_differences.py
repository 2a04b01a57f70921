"""Weights out of a base and coded differences: see `codecs.coding.weights_read`, which has the same
in numpy."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.float_counts import Numbers, contexts_of
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.low_bits import WORD_BITS, add_low_bits
from ders_core.compute.kernels.rans import pop_mixed
from ders_core.compute.kernels.rans_rounds import MANY_LANES, Words, pop_codes

Usual = tuple[np.ndarray, np.ndarray, np.ndarray, int]

RARE = np.int64(-(1 << 62))
FAR, NONE = RARE + np.int64(1 << 40), RARE + np.int64(2 << 40)

SPECIAL = 1 << 14
"""Above the upper parts of all levels, without their low bits; codes from here on stand for RARE,
FAR, NONE."""

RUN = 64
"""Codes that are looked at together: most runs have nothing special."""

BLOCK = 1 << 10
"""Weights that are made at once: their differences stay in the nearest cache."""


@part_apart
def cell_codes(
    slots: np.ndarray, info: np.ndarray, uppers: np.ndarray, lows: np.ndarray
) -> np.ndarray:
    """uint64 of each cell, as of `rans_rounds.pop_codes`: its code is its upper part without the
    low bits, or from SPECIAL on."""
    entries = np.empty(info.size, np.uint64)
    for number in range(lows.size):
        for cell in range(slots[number, 0], np.int64(slots[number, -1]) + 1):
            upper = uppers[cell]
            code = upper >> lows[number] if upper > NONE else SPECIAL + (upper - RARE >> 40)
            entries[cell] = np.uint64(np.uint64(code) << np.uint64(32)) | np.uint64(info[cell])
    return entries


@part_apart
def pop_usual(
    states: np.ndarray, tables: Usual, left: Words, contexts: np.ndarray, codes: np.ndarray
) -> int:
    """As `rans_rounds.pop_codes`, with any number of lanes."""
    slots, info, entries, bits = tables
    if states.size >= MANY_LANES:
        return int(pop_codes(states, slots, entries, left, contexts, codes))
    cells = np.empty(codes.size, np.uint16)
    at = pop_mixed(states, slots, info, bits, *left, contexts, cells)
    for place in range(cells.size):
        codes[place] = np.int16(entries[cells[place]] >> np.uint64(32))
    return int(at)


@part_apart
def find_special(codes: np.ndarray, places: np.ndarray) -> int:
    """Fill places, uint32, with where codes are special; how many these are."""
    count, special = np.uint64(0), np.int16(SPECIAL)
    for begin in range(0, codes.size, RUN):
        run, most = codes[begin : begin + RUN], np.int16(0)
        for place in range(run.size):
            most = max(most, run[place])
        if most >= special:
            for place in range(run.size):
                places[count] = begin + place
                count += np.uint64(run[place] >= special)
    return int(np.int64(count))


@part_apart
def contexts_of_rare(contexts: np.ndarray, codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint8 `[n]`: of the weights that say that they are rare, which are among places."""
    of_rare, count = np.empty(places.size, np.uint8), np.uint64(0)
    for place in places:
        if codes[place] == SPECIAL:
            of_rare[count] = contexts[place]
            count += np.uint64(1)
    return of_rare[:count]


@part_apart
def special_codes(
    contexts: np.ndarray,
    codes: np.ndarray,
    places: np.ndarray,
    rare: np.ndarray,
    rare_uppers: np.ndarray,
    lows: np.ndarray,
    far: np.ndarray,
    far_count: int,
    found: np.ndarray,
) -> int:
    """Fill found, int32 or int64, with the upper parts, without their low bits, that stand for
    special codes; they are at most so large that differences have room. far: those that are left
    begin at a number, which is returned as it is afterwards. rare: cells of the rare ones."""
    largest = np.int64(1) << (8 * found.itemsize - 3)  # counts no float
    rare_count = 0
    for number in range(places.size):
        place = places[number]
        low = lows[contexts[place]]
        upper, code = RARE + (np.int64(codes[place] - SPECIAL) << 40), largest >> low
        if upper == RARE:
            upper = rare_uppers[rare[rare_count]]
            rare_count += 1
        if upper == FAR:
            code = min(max(far[min(far_count, far.size - 1)], -code), code)
            far_count += 1
        elif upper > NONE:
            code = upper >> low
        found[number] = code
    return far_count


@part_apart
def move(base: np.ndarray, difference: np.ndarray, half: int, weight: np.ndarray) -> bool:
    """Fill weight with the floats that are so far from the base; whether there is none for one."""
    wide = difference.dtype.type
    below, zero = wide(-half - 1), wide(0)
    lowest, highest = wide(0), wide(0)
    for place in range(base.size):
        start = wide(base[place])
        counted = start if start >= zero else wide(below - start)
        number = wide(counted + difference[place])
        lowest, highest = min(lowest, number), max(highest, number)
        weight[place] = number if number >= zero else wide(below - number)
    return bool((lowest < -half) | (highest >= half))


@loop
def read(
    base: np.ndarray,
    numbers: Numbers,
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
    room: np.ndarray,
    lows: np.ndarray,
    far: np.ndarray,
    noise: np.ndarray,
    weight: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Fill weight, as base; returns where the words that are left begin, −1 where there are too
    few, or too few bits of noise. base, numbers, lows: as of `float_counts`. slots, info, bits,
    states, words, at, end: as of `rans.pop_mixed`. uppers: int64, of each cell. room: int32 or
    int64 `[3, BLOCK]`, for differences. far: int64, one more than may be outside. noise: uint32,
    BLOCK + 3 more than are used. ends: int64 `[3]`, gets whether a number counts no float, how many
    are outside, and how many bits are noise."""
    entries, rare_tables = cell_codes(slots, info, uppers, lows), (rare_slots, rare_info, rare_bits)
    contexts, codes = np.empty(piece, np.uint8), np.empty(piece, np.int16)
    places, all_special = np.empty(BLOCK + 1, np.uint32), np.empty(piece + RUN, np.uint32)
    rare, found = np.empty(piece, np.uint16), np.empty(piece, room.dtype)
    wrong, far_count, bit, widest = False, 0, np.uint64(0), lows.max()
    pairs = np.empty(BLOCK * widest // WORD_BITS + 2, np.uint64)
    most = WORD_BITS * (noise.size - BLOCK - 3)
    for begin in range(0, base.size, piece):
        start, filled = base[begin : begin + piece], weight[begin : begin + piece]
        context, code = contexts[: start.size], codes[: start.size]
        contexts_of(start, numbers, context)
        at = pop_usual(states, (slots, info, entries, bits), (words, at, end), context, code)
        if at < 0:
            return at
        special = all_special[: find_special(code, all_special)]
        of_rare = contexts_of_rare(context, code, special)
        at = pop_mixed(states, *rare_tables, words, at, end, of_rare, rare[: of_rare.size])
        if at < 0:
            return at
        given = rare, rare_uppers, lows, far, far_count
        far_count = special_codes(context, code, special, *given, found)
        number = 0
        for first in range(0, start.size, BLOCK):
            some, which = code[first : first + BLOCK], context[first : first + BLOCK]
            difference = room[0, : some.size]
            for place in range(some.size):
                difference[place] = some[place]
            while number < special.size and special[number] < first + BLOCK:
                difference[special[number] - first] = found[number]
                number += 1
            if widest > 0:
                bit = add_low_bits(which, lows, noise, bit, places, pairs, room, difference)
                if bit > most:
                    return -1
            block = slice(first, first + BLOCK)
            wrong |= move(start[block], difference, numbers[0], filled[block])
    ends[0], ends[1], ends[2] = wrong, far_count, np.int64(bit)
    return at

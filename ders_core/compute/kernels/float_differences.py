"""Weights out of a base and coded differences: see `codecs.coding.weights_read`, which has the same
in numpy."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.float_counts import Numbers, contexts_of
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.low_bits import WORD_BYTES, take_low_bits
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
"""Weights that are made at once: their low bits stay in the nearest cache."""

SPARE = 4 * BLOCK + WORD_BYTES
"""Bytes of noise that are read beyond the end, at most, before a block is found to have too few."""


@part_apart
def cell_codes(
    slots: np.ndarray, info: np.ndarray, uppers: np.ndarray, lows: np.ndarray
) -> np.ndarray:
    """uint64 of each cell, as of `rans_rounds.pop_codes`: its code is its upper part without the
    low bits, or from SPECIAL on, and its width is how many low bits its context has."""
    entries = np.empty(info.size, np.uint64)
    for number in range(lows.size):
        for cell in range(slots[number, 0], np.int64(slots[number, -1]) + 1):
            upper = uppers[cell]
            code = upper >> lows[number] if upper > NONE else SPECIAL + (upper - RARE >> 40)
            code = np.int64(code & 0xFFFF) | lows[number] << 16
            entries[cell] = np.uint64(np.uint64(code) << np.uint64(32)) | np.uint64(info[cell])
    return entries


@part_apart
def pop_usual(
    states: np.ndarray,
    tables: Usual,
    left: Words,
    contexts: np.ndarray,
    codes: np.ndarray,
    widths: np.ndarray,
) -> int:
    """As `rans_rounds.pop_codes`, with any number of lanes."""
    slots, info, entries, bits = tables
    if states.size >= MANY_LANES:
        return int(pop_codes(states, slots, entries, left, contexts, codes, widths))
    cells = np.empty(codes.size, np.uint16)
    at = pop_mixed(states, slots, info, bits, *left, contexts, cells)
    for place in range(cells.size):
        entry = entries[cells[place]]
        codes[place] = np.int16(entry >> np.uint64(32))
        widths[place] = np.uint8(entry >> np.uint64(48))
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
    special codes, in whose place come zeros; they are at most so large that differences have room.
    far: those that are left begin at a number, which is returned as it is afterwards. rare: cells
    of the rare ones."""
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
        found[number], codes[place] = code, 0
    return far_count


@part_apart
def move(
    base: np.ndarray,
    codes: np.ndarray,
    widths: np.ndarray,
    parts: np.ndarray,
    half: int,
    weight: np.ndarray,
) -> bool:
    """Fill weight with the floats that are so far from the base: so many low bits of parts, and
    above them a code. Returns whether there is none for one."""
    wide = parts.dtype.type
    below, zero, one = wide(-half - 1), wide(0), wide(1)
    lowest, highest, most = zero, zero, wide(8 * parts.itemsize - 1)
    for place in range(base.size):
        start, width = wide(base[place]), wide(wide(widths[place]) & most)
        counted = start if start >= zero else wide(below - start)
        low = wide(parts[place] & wide(wide(one << width) - one))
        number = wide(counted + wide(wide(wide(codes[place]) << width) | low))
        lowest, highest = min(lowest, number), max(highest, number)
        weight[place] = number if number >= zero else wide(below - number)
    return bool((lowest < -half) | (highest >= half))


@part_apart
def move_one(start: int, code: int, width: int, part: int, half: int) -> tuple[int, bool]:
    """(the float, whether there is none): as of `move`, of a code that is too large there."""
    counted = start if start >= 0 else -half - 1 - start
    number = counted + (code << width | part & (1 << width) - 1)
    return number if number >= 0 else -half - 1 - number, not -half <= number < half


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
    int64 `[BLOCK]`, for differences. far: int64, one more than may be outside. noise: uint8, SPARE
    more than are used. ends: int64 `[3]`, gets whether a number counts no float, how many
    are outside, and how many bits are noise."""
    entries, rare_tables = cell_codes(slots, info, uppers, lows), (rare_slots, rare_info, rare_bits)
    contexts, codes = np.empty(piece, np.uint8), np.empty(piece, np.int16)
    widths, all_special = np.empty(piece, np.uint8), np.empty(piece + RUN, np.uint32)
    rare, found = np.empty(piece, np.uint16), np.empty(piece, room.dtype)
    wrong, far_count, bit, half = False, 0, np.uint64(0), numbers[0]
    noisy, most = lows.max() > 0, np.uint64(8 * (noise.size - SPARE))
    room[:] = 0
    for begin in range(0, base.size, piece):
        start, filled = base[begin : begin + piece], weight[begin : begin + piece]
        context, code, width = contexts[: start.size], codes[: start.size], widths[: start.size]
        contexts_of(start, numbers, context)
        at = pop_usual(states, (slots, info, entries, bits), (words, at, end), context, code, width)
        if at < 0:
            return at
        special = all_special[: find_special(code, all_special)]
        of_rare = contexts_of_rare(context, code, special)
        at = pop_mixed(states, *rare_tables, words, at, end, of_rare, rare[: of_rare.size])
        if at < 0:
            return at
        given = rare, rare_uppers, lows, far, far_count
        far_count = special_codes(context, code, special, *given, found)
        done = 0
        for first in range(0, start.size, BLOCK):
            block = slice(first, first + BLOCK)
            some, parts = width[block], room[: width[block].size]
            if noisy:
                bit = take_low_bits(some, noise, bit, parts)
                if bit > most:
                    return -1
            stop = done
            while stop < special.size and special[stop] < first + BLOCK:
                some[special[stop] - first] = 0  # low bits without their code may count no float
                stop += 1
            wrong |= move(start[block], code[block], some, parts, half, filled[block])
            for number in range(done, stop):
                place = special[number]
                given_one = start[place], found[number], lows[context[place]], parts[place - first]
                filled[place], none = move_one(*given_one, half)
                wrong |= none
            done = stop
    ends[0], ends[1], ends[2] = wrong, far_count, np.int64(bit)
    return at

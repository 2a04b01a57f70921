"""Interleaved asymmetric numeral systems, a round of all lanes at a time: see `rans`.

What looks up tables goes from lane to lane, and so does what takes words; a processor does the
arithmetic between them on several lanes at once. That pays from MANY_LANES on.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import part_apart

Words = tuple[np.ndarray, int, int]

MANY_LANES = 16

USUAL_BITS = 12
"""Of `codecs.coding.rans.BITS`. Numbers that are shifted by a constant need no more bits than they
have."""


@part_apart
def pop_codes(
    states: np.ndarray,
    slots: np.ndarray,
    entries: np.ndarray,
    left: Words,
    contexts: np.ndarray,
    codes: np.ndarray,
    widths: np.ndarray,
) -> int:
    """As `rans.pop_mixed` with tables of USUAL_BITS, but fill codes, int16 `[n]`, and widths, uint8
    `[n]`, with what cells stand for. entries: uint64 `[cells]`, the info of each, above 32 bits its
    code, and above 48 its width. left: words, begin and end."""
    words, begin, end = left
    lanes, count = np.uint64(states.size), np.uint64(codes.size)
    mask, shift = np.uint32((1 << USUAL_BITS) - 1), np.uint32(USUAL_BITS)
    low_half, half, least = np.uint32(0xFFFF), np.uint32(16), np.uint32(1 << 16)
    at, last, place, flat = np.uint64(begin), np.uint64(end), np.uint64(0), slots.reshape(-1)
    indices, moved = np.empty(states.size, np.uint32), np.empty(states.size, np.uint32)
    taken, code_from, width_from = np.empty(states.size, np.uint64), np.uint64(32), np.uint64(48)
    while place < count:
        here = min(lanes, count - place)
        filled, given = codes[place : place + here], contexts[place : place + here]
        wide = widths[place : place + here]
        for lane in range(here):
            table = np.uint32(np.uint32(given[lane]) << shift)
            indices[lane] = np.uint32(table | np.uint32(states[lane] & mask))
        for lane in range(here):
            taken[lane] = entries[flat[indices[lane]]]
        for lane in range(here):
            info, state = np.uint32(taken[lane]), states[lane]
            begun = np.uint32(np.uint32(state & mask) - np.uint32(info >> half))
            moved[lane] = np.uint32(np.uint32(info & low_half) * np.uint32(state >> shift) + begun)
            filled[lane] = np.int16(taken[lane] >> code_from)
            wide[lane] = np.uint8(taken[lane] >> width_from)
        for lane in range(here):
            state = moved[lane]
            small = np.uint32(state < least)
            longer = np.uint32(np.uint32(state << half) | np.uint32(words[at]))
            states[lane] = longer if small else state
            at += np.uint64(small)
        place += here
        if at > last:
            return -1
    return int(np.int64(at))

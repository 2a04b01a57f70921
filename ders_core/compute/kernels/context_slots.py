"""Tables of several contexts as a stream has them: see `codecs.coding.difference_tables`, which has
the same in numpy. The bytes of a stream are not trusted."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.float_differences import FAR, NONE, RARE
from ders_core.compute.kernels.loop import loop, part_apart

MOST_DIGITS = 5
"""Of `codecs.coding.stream`."""


@part_apart
def take_small(stream: np.ndarray, at: int) -> tuple[int, int]:
    """(a number that `codecs.coding.stream.Writer.put_small` put, where the next one begins); −1,
    −1 if there is none."""
    number = np.int64(0)
    for place in range(min(MOST_DIGITS, stream.size - at)):
        digit = np.int64(stream[at + place])
        number |= (digit & 127) << 7 * place
        if digit < 128:
            return int(number), at + place + 1
    return -1, -1


@part_apart
def take_numbers(
    stream: np.ndarray, at: int, bits: int, rare_bits: int, usual: np.ndarray, rare: np.ndarray
) -> int:
    """Fill the frequencies of a context's levels, int64 `[levels + 1]` both; returns where what
    comes after them begins, −1 if they are not the frequencies of a table."""
    usual[:], rare[:] = 0, 0
    levels, left, left_rare, several = usual.size - 1, 1 << bits, 1 << rare_bits, 0
    begin, at = take_small(stream, at)
    span, at = take_small(stream, at) if at >= 0 else (-1, -1)
    if at < 0 or begin + span > levels:
        return -1
    for level in range(begin, begin + span):
        number, at = take_small(stream, at)
        if at < 0:
            return -1
        if number & 1:
            rare[level] = number >> 1
            left_rare -= number >> 1
            several += 1
        else:
            usual[level] = number >> 1
            left -= number >> 1
    usual[levels] = left
    if several == 0:
        rare[0] = 1 << rare_bits
        return at if left == 0 else -1
    return at if left > 0 and left_rare == 0 else -1


@part_apart
def put_slots(
    frequencies: np.ndarray,
    first: int,
    low: int,
    begin: int,
    info: np.ndarray,
    uppers: np.ndarray,
    slots: np.ndarray,
) -> int:
    """Fill info and uppers, as of `float_differences.read`, from the begin on, and slots, uint16
    `[2^bits]`; returns how many cells there are. first: the upper part of level 0."""
    number, slot, far = begin, 0, frequencies.size - 2
    for symbol in range(frequencies.size):
        frequency = frequencies[symbol]
        if frequency > 0:
            info[number] = np.uint32(frequency | slot << 16)
            uppers[number] = (symbol + first) << low
            if far < 0:
                uppers[number] = NONE
            elif symbol == far:
                uppers[number] = FAR
            elif symbol > far:
                uppers[number] = RARE
            slots[slot : slot + frequency] = np.uint16(number)
            number += 1
            slot += frequency
    return number - begin


@loop
def take(
    stream: np.ndarray,
    at: int,
    most_low: int,
    farthest: int,
    bits: int,
    rare_bits: int,
    most_cells: int,
    lows: np.ndarray,
    slots: np.ndarray,
    info: np.ndarray,
    uppers: np.ndarray,
    rare_slots: np.ndarray,
    rare_info: np.ndarray,
    rare_uppers: np.ndarray,
    cells: np.ndarray,
) -> int:
    """Fill lows, int64 `[contexts]`, slots, uint16 `[contexts, 2^bits]`, info and uppers, as of
    `float_differences.read`; returns where what comes after the tables begins, −1 if they are none.

    stream: uint8 `[n]`, where tables begin at `at`. Low bits are at most `most_low`, and upper
    parts of levels between −farthest and farthest; there are at most `most_cells` of each kind.
    cells: int64 `[4]`, gets how many usual and rare cells there are, and how many contexts have
    several of each."""
    cells[:] = 0
    room, rare_room = np.empty(2 * farthest + 2, np.int64), np.empty(2 * farthest + 2, np.int64)
    for number in range(lows.size):
        low, at = take_small(stream, at)
        levels, at = take_small(stream, at) if at >= 0 else (-1, -1)
        if at < 0 or low > most_low or levels > 2 * farthest + 1:
            return -1
        lows[number], first = low, 0
        usual, rare = room[: levels + 1], rare_room[: levels + 1]
        if levels == 0:
            usual[0], rare[0] = 1 << bits, 1 << rare_bits
        else:
            unsigned, at = take_small(stream, at)
            first = unsigned >> 1 ^ -(unsigned & 1)
            if at < 0 or abs(first) > farthest:
                return -1
            at = take_numbers(stream, at, bits, rare_bits, usual, rare)
            if at < 0:
                return -1
        made = put_slots(usual, first, low, cells[0], info, uppers, slots[number])
        cells[0] += made
        cells[2] += made > 1
        more = rare_slots[number]
        made = put_slots(rare, first, low, cells[1], rare_info, rare_uppers, more)
        cells[1] += made
        cells[3] += made > 1
    return at if max(cells[0], cells[1]) <= most_cells else -1

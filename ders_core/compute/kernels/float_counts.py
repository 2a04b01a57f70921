"""Floats counted in their order, and how far weights are from their base: see
`codecs.coding.differences`, which has the same in numpy.

base, weight: the bits of floats as signed numbers, int16 or int32 `[n]`. numbers: half, fraction,
mask, top, last: half of how many floats there are (2^15 or 2^31), how many bits are below the
exponent, its largest value; a weight's context is top − the exponent of its base, at most last.
lows, firsts, spans: int64 `[contexts]`. room: int32 or int64 `[block]`, for differences; no more
than 2^COUNT_BITS − 1 of them.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop, part, part_apart

TURNS = 4
"""Sums side by side of what is added up for each context."""

COUNT_BITS = 11
"""Below a sum in one number: of how many it is."""

Numbers = tuple[int, int, int, int, int]


@part
def fill_contexts(
    base: np.ndarray, fraction: int, mask: int, top: int, last: int, contexts: np.ndarray
) -> None:
    """Fill contexts, uint8, of bases, with so many bits below their exponent: a shift by a constant
    needs no more bits than the base has, and processors work on several at once."""
    narrow = base.dtype.type
    kept, most, few = narrow(mask), narrow(top), narrow(last)
    for place in range(base.size):
        exponent = narrow(narrow(base[place] >> fraction) & kept)
        contexts[place] = np.uint8(min(narrow(most - exponent), few))


@part_apart
def of_bfloat16(base: np.ndarray, mask: int, top: int, last: int, contexts: np.ndarray) -> None:
    fill_contexts(base, 7, mask, top, last, contexts)


@part_apart
def of_float16(base: np.ndarray, mask: int, top: int, last: int, contexts: np.ndarray) -> None:
    fill_contexts(base, 10, mask, top, last, contexts)


@part_apart
def of_float32(base: np.ndarray, mask: int, top: int, last: int, contexts: np.ndarray) -> None:
    fill_contexts(base, 23, mask, top, last, contexts)


@part_apart
def contexts_of(base: np.ndarray, numbers: Numbers, contexts: np.ndarray) -> None:
    """Fill contexts, uint8."""
    _, fraction, mask, top, last = numbers
    if fraction == 7:
        of_bfloat16(base, mask, top, last, contexts)
    elif fraction == 10:
        of_float16(base, mask, top, last, contexts)
    else:
        of_float32(base, mask, top, last, contexts)


@loop
def largest(bits: np.ndarray, half: int) -> int:
    """Of the bits without the sign; 0 of none."""
    narrow = bits.dtype.type
    most, mask = narrow(0), narrow(half - 1)
    for place in range(bits.size):
        most = max(most, narrow(bits[place] & mask))
    return int(most)


@part_apart
def compare(
    base: np.ndarray,
    weight: np.ndarray,
    numbers: Numbers,
    contexts: np.ndarray,
    differences: np.ndarray,
) -> None:
    """Fill contexts, uint8, and differences, which are as wide as their room is: processors work
    on several at once. Floats are counted in their order; −0 comes just before 0."""
    contexts_of(base, numbers, contexts)
    wide = differences.dtype.type
    below, zero = wide(-numbers[0] - 1), wide(0)
    for place in range(base.size):
        start, ours = wide(base[place]), wide(weight[place])
        first = start if start >= zero else wide(below - start)
        second = ours if ours >= zero else wide(below - ours)
        differences[place] = wide(second - first)


@loop
def sum_distances(
    base: np.ndarray,
    weight: np.ndarray,
    numbers: Numbers,
    room: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """sums, counts: int64 `[contexts]`: adds how far weights are, and how many there are. In turns:
    a processor waits for a sum before it adds to the same one again."""
    contexts, one, low = np.empty(room.size, np.uint8), np.int64(1), np.int64(COUNT_BITS)
    turns = np.empty((TURNS, sums.size), np.int64)
    for begin in range(0, base.size, room.size):
        some = base[begin : begin + room.size]
        context, difference = contexts[: some.size], room[: some.size]
        compare(some, weight[begin : begin + room.size], numbers, context, difference)
        turns[:] = 0
        for place in range(some.size):
            far = np.int64(abs(difference[place]))
            turns[place % TURNS, context[place]] += (far << low) | one
        for turn in range(TURNS):
            for number in range(sums.size):
                sums[number] += turns[turn, number] >> low
                counts[number] += turns[turn, number] & ((one << low) - one)


@loop
def count_codes(
    base: np.ndarray,
    weight: np.ndarray,
    numbers: Numbers,
    room: np.ndarray,
    lows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """counts: int64 `[contexts, 2k + 1]`: adds differences without their low bits, from −k to
    k − 1; others in the last column."""
    middle, width, cells = counts.shape[1] // 2, counts.shape[1], counts.reshape(-1)
    contexts, last = np.empty(room.size, np.uint8), np.uint64(2 * middle)
    for begin in range(0, base.size, room.size):
        some = base[begin : begin + room.size]
        context, difference = contexts[: some.size], room[: some.size]
        compare(some, weight[begin : begin + room.size], numbers, context, difference)
        for place in range(some.size):
            number = np.uint64(context[place])
            code = (np.int64(difference[place]) >> lows[number]) + middle
            cells[number * np.uint64(width) + min(np.uint64(code), last)] += 1


@part_apart
def put_noise(
    context: np.ndarray,
    difference: np.ndarray,
    lows: np.ndarray,
    pending: np.uint64,
    bit: np.uint64,
    noise: np.ndarray,
) -> tuple[np.uint64, np.uint64]:
    """Put the low bits of differences into noise from a bit on, with what is pending of the number
    there; returns what is pending then, and the bit after them."""
    word, filled = np.uint64(bit >> np.uint64(5)), np.uint64(bit & np.uint64(31))
    masks = (np.int64(1) << lows) - 1
    for place in range(context.size):
        part = np.uint64(np.int64(difference[place]) & masks[context[place]])
        pending |= np.uint64(part << filled)
        filled += np.uint64(lows[context[place]])
        noise[word] = np.uint32(pending)
        whole = np.uint64(filled >> np.uint64(5))
        word += whole
        pending >>= np.uint64(whole << np.uint64(5))
        filled &= np.uint64(31)
    return pending, np.uint64(np.uint64(word << np.uint64(5)) + filled)


@part_apart
def cells_of_codes(cells: np.ndarray, firsts: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """int32 `[contexts, codes]`: the usual cell of each code from the least first one on; −1 where
    it is rare or far, as in the last column."""
    least, end = firsts.min(), (firsts + spans).max()
    found = np.full((firsts.size, end - least + 1), -1, np.int32)
    for number in range(firsts.size):
        for symbol in range(spans[number]):
            found[number, firsts[number] + symbol - least] = cells[number, symbol]
    return found


@loop
def split(
    base: np.ndarray,
    weight: np.ndarray,
    numbers: Numbers,
    room: np.ndarray,
    lows: np.ndarray,
    firsts: np.ndarray,
    spans: np.ndarray,
    usual_cells: np.ndarray,
    rare_cells: np.ndarray,
    escapes: np.ndarray,
    piece: int,
    cells: np.ndarray,
    rare: np.ndarray,
    rare_ends: np.ndarray,
    far: np.ndarray,
    noise: np.ndarray,
) -> None:
    """Fill cells, rare, rare_ends and far, as of `codecs.coding.differences.Parts`, and noise,
    uint32. usual_cells, rare_cells: int32 `[contexts, symbols]`, −1 of a rare symbol and of a usual
    one. escapes: int32 `[contexts]`, cells that say that a rare symbol comes. piece: weights in
    one, a multiple of a block. rare, far and noise are one longer."""
    one, rare_count, far_count = np.uint64(1), np.uint64(0), np.uint64(0)
    pending, bit, noisy = np.uint64(0), np.uint64(0), lows.max() > 0
    contexts, least = np.empty(room.size, np.uint8), firsts.min()
    of_codes = cells_of_codes(usual_cells, firsts, spans)
    width, flat = np.uint64(of_codes.shape[1]), of_codes.reshape(-1)
    for begin in range(0, base.size, room.size):
        some = base[begin : begin + room.size]
        context, difference = contexts[: some.size], room[: some.size]
        compare(some, weight[begin : begin + room.size], numbers, context, difference)
        filled = cells[begin : begin + room.size]
        for place in range(some.size):
            number = np.uint64(context[place])
            code = np.int64(difference[place]) >> lows[number]
            column = min(np.uint64(code - least), width - one)
            cell = flat[number * width + column]
            if cell < 0:
                symbol = min(np.uint64(code - firsts[number]), np.uint64(spans[number]))
                if symbol == np.uint64(spans[number]):
                    far[far_count] = code
                    far_count += one
                cell = usual_cells[number, symbol]
                if cell < 0:
                    rare[rare_count] = rare_cells[number, symbol]
                    rare_count += one
                    cell = escapes[number]
            filled[place] = cell
        if noisy:
            pending, bit = put_noise(context, difference, lows, pending, bit, noise)
        rare_ends[begin // piece] = np.int64(rare_count)
    if noisy:
        noise[bit >> np.uint64(5)] = np.uint32(pending)

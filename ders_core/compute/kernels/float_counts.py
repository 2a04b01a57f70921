"""Floats counted in their order, and how far weights are from their base: see
`codecs.coding.differences`, which has the same in numpy.

base, weight: the bits of floats as signed numbers, int16 or int32 `[n]`. half: half of how many
there are: 2^15 or 2^31. A weight's context is top − the exponent of its base, at most `last`.
fraction: how many bits are below the exponent, and mask its largest value. lows, firsts, spans:
int64 `[contexts]`.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop, part_apart

TURNS = 4
"""Sums side by side of what is added up for each context."""


@part_apart
def ordered(bits: np.signedinteger, half: int) -> int:
    """Counts floats in their order; −0 comes just before 0."""
    number = int(np.int64(bits))
    return -half - 1 - number if number < 0 else number


@part_apart
def context_of(bits: np.signedinteger, fraction: int, mask: int, top: int, last: int) -> np.uint8:
    """The context of a base."""
    exponent = np.int32(np.int32(bits) >> np.int32(fraction)) & np.int32(mask)
    return np.uint8(min(np.int32(np.int32(top) - exponent), np.int32(last)))


@loop
def sum_distances(
    base: np.ndarray,
    weight: np.ndarray,
    half: int,
    fraction: int,
    mask: int,
    top: int,
    last: int,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """sums, counts: int64 `[contexts]`: adds how far weights are, and how many there are. In turns:
    a processor waits for a sum before it adds to the same one again."""
    turns = np.zeros((TURNS, 2, sums.size), np.int64)
    for place in range(base.size):
        turn, context = turns[place % TURNS], context_of(base[place], fraction, mask, top, last)
        turn[0, context] += abs(ordered(weight[place], half) - ordered(base[place], half))
        turn[1, context] += 1
    for number in range(TURNS):
        sums += turns[number, 0]
        counts += turns[number, 1]


@loop
def count_codes(
    base: np.ndarray,
    weight: np.ndarray,
    half: int,
    fraction: int,
    mask: int,
    top: int,
    last: int,
    lows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """counts: int64 `[contexts, 2k + 1]`: adds differences without their low bits, from −k to
    k − 1; others in the last column."""
    middle = counts.shape[1] // 2
    for place in range(base.size):
        context = context_of(base[place], fraction, mask, top, last)
        difference = ordered(weight[place], half) - ordered(base[place], half)
        code = (difference >> lows[context]) + middle
        counts[context, np.uint64(min(np.uint64(code), np.uint64(2 * middle)))] += 1


@loop
def split(
    base: np.ndarray,
    weight: np.ndarray,
    half: int,
    fraction: int,
    mask: int,
    top: int,
    last: int,
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
    one. rare, far and noise are one longer."""
    one, rare_count, far_count, words = np.uint64(1), np.uint64(0), np.uint64(0), np.uint64(0)
    pending, filled = np.uint64(0), np.uint64(0)
    noisy = lows.max() > 0
    for number in range(rare_ends.size):
        for place in range(number * piece, min((number + 1) * piece, base.size)):
            context = context_of(base[place], fraction, mask, top, last)
            difference = ordered(weight[place], half) - ordered(base[place], half)
            low, span = lows[context], np.uint64(spans[context])
            code = difference >> low
            symbol = min(np.uint64(code - firsts[context]), span)
            cell = usual_cells[context, symbol]
            if symbol == span:
                far[far_count] = code
                far_count += one
            if cell < 0:
                rare[rare_count] = rare_cells[context, symbol]
                rare_count += one
                cell = escapes[context]
            cells[place] = cell
            if noisy:
                part = np.uint64(difference & ((np.int64(1) << low) - 1))
                pending |= np.uint64(part << filled)
                filled += np.uint64(low)
                noise[words] = np.uint32(pending)
                if filled >= np.uint64(32):
                    words += one
                    pending >>= np.uint64(32)
                    filled -= np.uint64(32)
        rare_ends[number] = np.int64(rare_count)
    if noisy:
        noise[words] = np.uint32(pending)

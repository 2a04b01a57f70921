"""Floats counted in their order, and how far weights are from their base: see
`codecs.coding.differences`, which has the same in numpy.

base, weight: the bits of floats as signed numbers, int32 `[n]`. half: half of how many there are:
2^15 or 2^31. contexts: uint8 `[n]`. lows, firsts, spans: int64 `[contexts]`; spans below 2^16 − 1.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def ordered(bits: np.int32, half: int) -> int:
    """Counts floats in their order; −0 comes just before 0."""
    number = int(np.int64(bits))
    return -half - 1 - number if number < 0 else number


@loop
def find_contexts(
    base: np.ndarray, fraction: int, mask: int, top: int, last: int, contexts: np.ndarray
) -> None:
    """Fill contexts: top − the exponent of the base, at most `last`. fraction: how many bits are
    below the exponent, and mask its largest value."""
    shift, full = np.int32(fraction), np.int32(mask)
    highest, most = np.int32(top), np.int32(last)
    for place in range(base.size):
        exponent = np.int32(np.int32(base[place] >> shift) & full)
        contexts[place] = np.uint8(min(np.int32(highest - exponent), most))


@loop
def sum_distances(
    base: np.ndarray, weight: np.ndarray, half: int, contexts: np.ndarray, sums: np.ndarray
) -> None:
    """sums: int64 `[contexts]`: adds how far weights are."""
    for place in range(base.size):
        distance = abs(ordered(weight[place], half) - ordered(base[place], half))
        sums[contexts[place]] += distance


@loop
def count_codes(
    base: np.ndarray,
    weight: np.ndarray,
    half: int,
    contexts: np.ndarray,
    lows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """counts: int64 `[contexts, 2k + 1]`: adds differences without their low bits, from −k to
    k − 1; others in the last column."""
    middle = counts.shape[1] // 2
    for place in range(base.size):
        context = contexts[place]
        difference = ordered(weight[place], half) - ordered(base[place], half)
        code = (difference >> lows[context]) + middle
        counts[context, np.uint64(min(np.uint64(code), np.uint64(2 * middle)))] += 1


@loop
def split(
    base: np.ndarray,
    weight: np.ndarray,
    half: int,
    contexts: np.ndarray,
    lows: np.ndarray,
    firsts: np.ndarray,
    spans: np.ndarray,
    of_rare: np.ndarray,
    symbols: np.ndarray,
    noise: np.ndarray,
    rare: np.ndarray,
    of_contexts: np.ndarray,
    far: np.ndarray,
) -> None:
    """Fill symbols, uint16: the difference without its low bits minus firsts, or spans where it is
    outside of them, or one more where it is rare. Fill noise, uint32, with the low bits; rare,
    uint16, with the rare symbols, and of_contexts, uint8, with theirs; far, int64, with what is
    outside. of_rare: bool `[contexts, symbols]`. rare, of_contexts and far are one longer."""
    one, rare_count, far_count = np.uint64(1), np.uint64(0), np.uint64(0)
    for place in range(base.size):
        context = contexts[place]
        difference = ordered(weight[place], half) - ordered(base[place], half)
        low, span = lows[context], np.uint64(spans[context])
        code = difference >> low
        symbol = np.uint16(min(np.uint64(code - firsts[context]), span))
        noise[place] = np.uint32(difference & ((np.int64(1) << low) - 1))
        if symbol == span:
            far[far_count] = code
            far_count += one
        if of_rare[context, symbol]:
            rare[rare_count], of_contexts[rare_count] = symbol, context
            rare_count += one
            symbol = np.uint16(span + one)
        symbols[place] = symbol


@loop
def find_rare(
    symbols: np.ndarray, contexts: np.ndarray, spans: np.ndarray, of_contexts: np.ndarray
) -> int:
    """Fill of_contexts, uint8 `[n + 1]`, with the contexts of rare symbols; how many there are."""
    count = np.uint64(0)
    for place in range(symbols.size):
        context = contexts[place]
        of_contexts[count] = context
        count += np.uint64(np.int64(symbols[place]) == spans[context] + 1)
    return int(np.int64(count))


@loop
def count_contexts(contexts: np.ndarray, counts: np.ndarray) -> None:
    """counts: int64 `[contexts]`: adds how often each occurs."""
    for place in range(contexts.size):
        counts[contexts[place]] += 1


@loop
def join(
    base: np.ndarray,
    half: int,
    contexts: np.ndarray,
    lows: np.ndarray,
    firsts: np.ndarray,
    spans: np.ndarray,
    symbols: np.ndarray,
    noise: np.ndarray,
    rare: np.ndarray,
    far: np.ndarray,
    weight: np.ndarray,
) -> int:
    """The inverse: fill weight. noise: `[0]` where there is none. rare: as many as `find_rare`
    found. far: one more than may be outside. Returns how many numbers count no float, and how many
    are outside that are not in far, or the other way round."""
    one, rare_count, far_count, wrong = np.uint64(1), np.uint64(0), np.uint64(0), 0
    last, noisy = np.uint64(far.size - 1), noise.size > 0
    for place in range(base.size):
        context = contexts[place]
        span, symbol = spans[context], np.int64(symbols[place])
        if symbol > span:
            symbol = np.int64(rare[rare_count])
            rare_count += one
        code = symbol + firsts[context]
        if symbol == span:
            code = far[far_count]
            wrong += far_count == last
            far_count = min(far_count + one, last)
        difference = code << lows[context]
        if noisy:
            difference |= np.int64(noise[place])
        number = ordered(base[place], half) + difference
        if number < -half or number >= half:
            wrong += 1
        weight[place] = np.int32(-half - 1 - number if number < 0 else number)
    return wrong + int(np.int64(last - far_count))

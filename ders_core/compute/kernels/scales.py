"""The search of `codecs.fitting.scales.best_scales`, a block at a time, in cache.

All arrays are float32, and each operation is rounded to float32, as torch does.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.levels import snap_to_table, snap_uniform
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.sums import halved, halved_apart


@part_apart
def weighed_square(
    value: np.float32, level: np.float32, scale: np.float32, weight: np.float32
) -> np.float32:
    """The weighed squared error of one value."""
    error = np.float32(value - np.float32(level * scale))
    return np.float32(np.float32(error * error) * weight)


@loop
def best_scales(
    blocks: np.ndarray,
    weights: np.ndarray,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    rough: np.ndarray,
    shrinks: np.ndarray,
    spreads: np.ndarray,
    gaussian: np.float32,
    reach: np.float32,
    caution: np.float32,
    tiny: np.float32,
    refinements: int,
    scales: np.ndarray,
) -> None:
    """scales: `[n]`, gets the scale of each block.

    blocks: `[n, size]`. weights: `[m, size]`, of block i those in row i mod m; `[0, size]` for 1.
    table, borders, bins, fine, rough: as of `levels`. reach: the outermost level. shrinks: scales
    of a block whose largest magnitude is 1. spreads: multiples of `gaussian` times its root mean
    square.
    """
    count, size = blocks.shape
    padded = (size + 3) // 4 * 4
    unit, heavy = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    levels, terms = np.empty(padded, np.float32), np.empty(padded, np.float32)
    products, is_uniform = np.empty(padded, np.float32), borders.size == 0
    is_one_magnitude = table.size == 2
    for place in range(size):
        heavy[place] = 1
    total, totals = np.float32(size), np.empty(weights.shape[0], np.float32)
    for number in range(weights.shape[0]):
        heavy[:size] = weights[number]
        terms[:] = heavy
        totals[number] = max(halved_apart(terms, padded), tiny)
    one, zero = np.float32(1), np.float32(0)
    for block in range(count):
        if weights.shape[0] > 0:
            heavy[:size] = weights[block % weights.shape[0]]
            total = totals[block % weights.shape[0]]
        largest = zero
        for place in range(size):
            magnitude = abs(blocks[block, place]) if heavy[place] > zero else zero
            largest = max(largest, magnitude)
        divisor = largest if largest > zero else one
        for place in range(size):
            unit[place] = blocks[block, place] / divisor
        if is_one_magnitude:
            for place in range(padded):
                terms[place] = abs(unit[place]) * heavy[place]
        else:
            for place in range(padded):
                terms[place] = np.float32(unit[place] * unit[place]) * heavy[place]
        mean = np.float32(halved(terms, padded) / total)
        if is_one_magnitude:
            scales[block] = np.float32(mean * largest) / reach
            continue
        spread = np.float32(np.float32(np.sqrt(mean)) * gaussian)
        best, least, first = zero, np.float32(np.inf), 0
        again = spreads.size + shrinks.size  # from there on refinements
        for attempt in range(again + refinements):
            number = attempt - spreads.size if attempt >= spreads.size else attempt + shrinks.size
            if attempt < spreads.size:
                scale = np.float32(spread * spreads[attempt])
            elif attempt < again:
                scale = shrinks[number]
                # no error is below that of the largest value, where the levels do not reach it
                short = max(np.float32(one - caution - np.float32(reach * scale)), zero)
                bound = np.float32(np.float32(short * short) * np.float32(one - caution))
                if weights.shape[0] == 0 and bound > least:
                    continue
            else:  # the best scale for the levels that the best one so far gives
                inverse = one / (best if best > tiny else one)
                if is_uniform:
                    snap_uniform(unit, inverse, table, levels)
                else:
                    snap_to_table(unit, inverse, table, borders, bins, fine, rough, levels)
                for place in range(padded):
                    weighed = np.float32(levels[place] * heavy[place])
                    products[place] = unit[place] * weighed
                    terms[place] = levels[place] * weighed
                power = max(halved_apart(terms, padded), tiny)
                scale = max(np.float32(halved_apart(products, padded) / power), zero)
            inverse, left = one / (scale if scale > tiny else one), padded
            if is_uniform:
                snap_uniform(unit, inverse, table, levels)
            else:
                snap_to_table(unit, inverse, table, borders, bins, fine, rough, levels)
            if padded > 16:  # the first two steps of the sum at once
                left = padded // 4
                for place in range(left):
                    second, third = place + left, place + 2 * left
                    fourth = third + left
                    terms[place] = (
                        weighed_square(unit[place], levels[place], scale, heavy[place])
                        + weighed_square(unit[third], levels[third], scale, heavy[third])
                    ) + (
                        weighed_square(unit[second], levels[second], scale, heavy[second])
                        + weighed_square(unit[fourth], levels[fourth], scale, heavy[fourth])
                    )
            else:
                for place in range(padded):
                    terms[place] = weighed_square(unit[place], levels[place], scale, heavy[place])
            found = halved(terms, left)
            if found < least:
                best, least, first = scale, found, number
            elif attempt >= again:
                break
            elif found == least and number < first:
                best, first = scale, number
        scales[block] = best * largest

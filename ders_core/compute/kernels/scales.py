"""The search of `codecs.fitting.scales.best_scales`, a block at a time, in cache.

All arrays are float32, and each operation is rounded to float32, as torch does.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.eight_blocks import BLOCKS, best_scales_of_eight
from ders_core.compute.kernels.even_levels import (
    SIZES,
    largest_magnitude,
    squared_error,
    sum_magnitudes,
    sum_products,
    sum_squares,
)
from ders_core.compute.kernels.levels import snap
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.sums import halved, halved_apart

Search = tuple[
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.float32,
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.float32,
    np.float32,
    np.float32,
    np.float32,
    int,
]
"""What `best_scales` takes between weights and scales."""


@part_apart
def weighed_square(
    value: np.float32, level: np.float32, scale: np.float32, weight: np.float32
) -> np.float32:
    """The weighed squared error of one value."""
    error = np.float32(value - np.float32(level * scale))
    return np.float32(np.float32(error * error) * weight)


@part_apart
def squared(
    unit: np.ndarray, levels: np.ndarray, scale: np.float32, heavy: np.ndarray, terms: np.ndarray
) -> np.floating:
    """The weighed squared error of a block. terms: is overwritten."""
    left = unit.size
    if left > 16:  # the first two steps of the sum at once
        left //= 4
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
        for place in range(left):
            terms[place] = weighed_square(unit[place], levels[place], scale, heavy[place])
    return halved(terms, left)


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
    products, is_quick = np.empty(padded, np.float32), borders.size == 0 and size in SIZES
    is_one_magnitude, is_weighed = table.size == 2, weights.shape[0] > 0
    lowest, top = table[0], np.float32(table.size - 1)
    for place in range(size):
        heavy[place] = 1
    total, totals = np.float32(size), np.empty(weights.shape[0], np.float32)
    for number in range(weights.shape[0]):
        heavy[:size] = weights[number]
        terms[:] = heavy
        totals[number] = max(halved_apart(terms, padded), tiny)
    one, zero = np.float32(1), np.float32(0)
    together = count // BLOCKS * BLOCKS  # so many are done eight at once
    if not is_quick or is_one_magnitude or is_weighed:
        together = 0
    values = np.empty(BLOCKS * size if together else 0, np.float32)
    for block in range(0, together, BLOCKS):
        best_scales_of_eight(
            blocks[block : block + BLOCKS],
            table,
            shrinks,
            spreads,
            gaussian,
            reach,
            caution,
            tiny,
            refinements,
            values,
            scales[block : block + BLOCKS],
        )
    for block in range(together, count):
        if is_weighed:
            heavy[:size] = weights[block % weights.shape[0]]
            total = totals[block % weights.shape[0]]
        if is_quick:
            largest = largest_magnitude(blocks[block], heavy, is_weighed, None)
        else:
            largest = zero
            for place in range(size):
                magnitude = abs(blocks[block, place]) if heavy[place] > zero else zero
                largest = max(largest, magnitude)
        divisor = largest if largest > zero else one
        for place in range(size):
            unit[place] = blocks[block, place] / divisor
        if is_quick and is_one_magnitude:
            mean = np.float32(sum_magnitudes(unit, heavy, is_weighed, None) / total)
        elif is_quick:
            mean = np.float32(sum_squares(unit, heavy, is_weighed, None) / total)
        else:
            for place in range(padded):
                size_of = abs(unit[place])
                power = size_of if is_one_magnitude else np.float32(size_of * size_of)
                terms[place] = power * heavy[place]
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
                if not is_weighed and bound > least:
                    continue
            else:  # the best scale for the levels that the best one so far gives
                inverse = one / (best if best > tiny else one)
                if is_quick:
                    shared, power = sum_products(unit, heavy, is_weighed, (inverse, lowest, top))
                else:
                    snap(unit, inverse, table, borders, bins, fine, rough, levels)
                    for place in range(padded):
                        weighed = np.float32(levels[place] * heavy[place])
                        products[place] = unit[place] * weighed
                        terms[place] = levels[place] * weighed
                    shared, power = halved_apart(products, padded), halved_apart(terms, padded)
                scale = max(np.float32(shared / max(power, tiny)), zero)
            inverse = one / (scale if scale > tiny else one)
            if is_quick:
                found = squared_error(unit, heavy, is_weighed, (scale, inverse, lowest, top))
            else:
                snap(unit, inverse, table, borders, bins, fine, rough, levels)
                found = squared(unit, levels, scale, heavy, terms)
            if found < least:
                best, least, first = scale, found, number
            elif attempt >= again:
                break
            elif found == least and number < first:
                best, first = scale, number
        scales[block] = best * largest

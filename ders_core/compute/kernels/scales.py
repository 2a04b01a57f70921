"""The search of `codecs.fitting.scales.best_scales`, a block at a time, in cache.

All arrays are float32, and each operation is rounded to float32, as torch does.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.eight_blocks import BLOCKS, ROWS, best_scales_of_eight
from ders_core.compute.kernels.even_levels import (
    SIZES,
    largest_magnitude,
    sum_fits,
    sum_magnitudes,
    sum_squares,
)
from ders_core.compute.kernels.levels import FEW, snap_to_table
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.sums import halved_apart
from ders_core.compute.kernels.table_levels import snap_to_few, sum_fits_to_table

Search = tuple[
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.float32,
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.ndarray,
    np.float32,
    np.float32,
    np.float32,
    np.float32,
]
"""What `best_scales` takes between weights and scales."""

TO_EVEN = np.float32(3 << 22)
"""What is added to it, up to 2^22, becomes a whole number: the nearest, halfway the even one."""


@part_apart
def snap_evenly(
    values: np.ndarray,
    inverse: np.float32,
    lowest: np.float32,
    top: np.float32,
    errors: np.ndarray,
    levels: np.ndarray,
) -> None:
    """levels, errors: get the level nearest to each value times the inverse of a step, and what
    that is above it. values: magnitudes. lowest, top: as of `even_levels.fits_of`."""
    for place in range(values.size):
        above = np.float32(np.float32(values[place] * inverse) - lowest)
        nearest = np.float32(np.float32(min(above, top) + TO_EVEN) - TO_EVEN)
        errors[place] = above - nearest
        levels[place] = nearest + lowest


@part_apart
def summed_fits(
    errors: np.ndarray, levels: np.ndarray, heavy: np.ndarray, terms: np.ndarray
) -> tuple[np.floating, np.floating]:
    """Σ w·e² and Σ w·e·L. terms: is overwritten."""
    for place in range(terms.size):
        terms[place] = np.float32(errors[place] * errors[place]) * heavy[place]
    squares = halved_apart(terms, terms.size)
    for place in range(terms.size):
        terms[place] = np.float32(errors[place] * levels[place]) * heavy[place]
    return squares, halved_apart(terms, terms.size)


@loop
def best_scales(
    blocks: np.ndarray,
    weights: np.ndarray,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    rough: np.ndarray,
    spreads: np.ndarray,
    shrinks: np.ndarray,
    nears: np.ndarray,
    gaussian: np.float32,
    reach: np.float32,
    tiny: np.float32,
    least_power: np.float32,
    scales: np.ndarray,
) -> None:
    """scales: `[n]`, gets the scale of each block.

    blocks: `[n, size]`. weights: `[m, size]`, of block i those in row i mod m; `[0, size]` for 1.
    table, borders, bins, fine, rough: as of `levels`; levels that are 1 apart lie around zero.
    spreads: multiples of `gaussian` times a block's root mean square that are tried. shrinks:
    scales that are, of a block whose largest magnitude is 1. nears: multiples of the best one so
    far. reach: the outermost level. least_power: as of `codecs.fitting.scales`.
    """
    count, size = blocks.shape
    padded = (size + 3) // 4 * 4
    unit, heavy = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    levels, errors = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    terms = np.empty(padded, np.float32)
    is_even, is_weighed = borders.size == 0, weights.shape[0] > 0
    is_usual, is_one_magnitude = size in SIZES, table.size == 2
    is_quick = is_even and is_usual
    above = table.size // 2
    lowest, top = table[above], np.float32(table.size - 1 - above)
    for place in range(size):
        heavy[place] = 1
    total, totals = np.float32(size), np.empty(weights.shape[0], np.float32)
    for number in range(weights.shape[0]):
        heavy[:size] = weights[number]
        terms[:] = heavy
        totals[number] = max(halved_apart(terms, padded), tiny)
    one, zero = np.float32(1), np.float32(0)
    together = count // BLOCKS * BLOCKS if is_quick and not is_weighed else 0  # eight at once
    values, desk = np.empty(BLOCKS * size, np.float32), np.empty((ROWS, BLOCKS), np.float32)
    for block in range(0, together, BLOCKS):
        best_scales_of_eight(
            blocks[block : block + BLOCKS],
            table,
            spreads,
            shrinks,
            nears,
            gaussian,
            reach,
            tiny,
            least_power,
            values,
            desk,
            scales[block : block + BLOCKS],
        )
    for block in range(together, count):
        if is_weighed:
            heavy[:size] = weights[block % weights.shape[0]]
            total = totals[block % weights.shape[0]]
        if is_usual:
            largest = largest_magnitude(blocks[block], heavy, is_weighed, None)
        else:
            largest = zero
            for place in range(size):
                magnitude = abs(blocks[block, place]) if heavy[place] > zero else zero
                largest = max(largest, magnitude)
        divisor = largest if largest > zero else one
        for place in range(size):
            value = blocks[block, place] / divisor
            unit[place] = abs(value) if is_even or is_one_magnitude else value
        if is_usual and is_one_magnitude:
            energy = sum_magnitudes(unit, heavy, is_weighed, None)
        elif is_usual:
            energy = sum_squares(unit, heavy, is_weighed, None)
        else:
            for place in range(padded):
                power = unit[place] if is_one_magnitude else np.float32(unit[place] * unit[place])
                terms[place] = power * heavy[place]
            energy = np.float32(halved_apart(terms, padded))
        mean = np.float32(energy / total)
        if is_one_magnitude:
            scales[block] = np.float32(mean * largest) / reach
            continue
        spread = np.float32(np.float32(np.sqrt(mean)) * gaussian)
        best, least = zero, np.float32(np.inf)
        for attempt in range(spreads.size + shrinks.size + nears.size):
            number = attempt - spreads.size
            if attempt < spreads.size:
                scale = np.float32(spread * spreads[attempt])
            elif number < shrinks.size:
                scale = shrinks[number]
            else:
                scale = np.float32(best * nears[number - shrinks.size])
            inverse = one / (scale if scale > tiny else one)
            if is_quick:
                squares, shared = sum_fits(unit, heavy, is_weighed, (inverse, lowest, top))
            elif is_usual:
                if table.size <= FEW + 1:
                    snap_to_few(unit, inverse, table, borders, levels)
                else:
                    snap_to_table(unit, inverse, table, borders, bins, fine, rough, levels)
                squares, shared = sum_fits_to_table(unit, levels, heavy, is_weighed, (inverse,))
            else:
                if is_even:
                    snap_evenly(unit, inverse, lowest, top, errors, levels)
                else:
                    snap_to_table(unit, inverse, table, borders, bins, fine, rough, levels)
                    for place in range(padded):
                        errors[place] = np.float32(unit[place] * inverse) - levels[place]
                squares, shared = summed_fits(errors, levels, heavy, terms)
            # the best scale for these levels, and its error
            whole = np.float32(np.float32(energy * inverse) * inverse)
            power = np.float32(np.float32(whole - np.float32(shared + shared)) - squares)
            is_known = power > np.float32(least_power * np.float32(whole + squares))
            move = np.float32(shared / power) if is_known else zero
            left = max(np.float32(squares - np.float32(shared * move)), zero)
            error = np.float32(np.float32(scale * scale) * left)
            if error < least:
                best, least = np.float32(scale * max(np.float32(one + move), zero)), error
        scales[block] = best * largest

"""The search of `codecs.fitting.lines.best_lines`, a block at a time, in cache.

All arrays are float32, and each operation is rounded to float32, as torch does.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels import even_lines
from ders_core.compute.kernels.even_levels import SIZES
from ders_core.compute.kernels.levels import snap_uniform
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.sums import halved_apart

LineSearch = tuple[np.ndarray, np.ndarray, np.ndarray, np.float32, int]
"""What `best_lines` takes between weights and scales."""


@part_apart
def snap_moved(
    unit: np.ndarray,
    ahead: np.float32,
    step: np.float32,
    table: np.ndarray,
    moved: np.ndarray,
    levels: np.ndarray,
) -> None:
    """levels: get those nearest to values less an offset, over a step. moved: is overwritten."""
    for place in range(unit.size):
        moved[place] = np.float32(unit[place] - ahead) / step
    snap_uniform(moved, np.float32(1), table, levels)


@part_apart
def summed_lines(
    unit: np.ndarray,
    heavy: np.ndarray,
    levels: np.ndarray,
    means: tuple[np.float32, np.float32],
    terms: np.ndarray,
) -> tuple[np.floating, np.floating]:
    """Σ w·(L − L̄)·L and Σ w·(L − L̄)·(u − ū). means: L̄, ū. terms: is overwritten."""
    centre, middle = means
    for place in range(terms.size):
        apart = np.float32(levels[place] - centre) * heavy[place]
        terms[place] = np.float32(apart) * levels[place]
    power = halved_apart(terms, terms.size)
    for place in range(terms.size):
        apart = np.float32(levels[place] - centre) * heavy[place]
        terms[place] = np.float32(apart) * np.float32(unit[place] - middle)
    return power, halved_apart(terms, terms.size)


@part_apart
def summed_errors(
    unit: np.ndarray,
    heavy: np.ndarray,
    levels: np.ndarray,
    slope: np.float32,
    shift: np.float32,
    terms: np.ndarray,
) -> np.floating:
    """Σ w·(u − s·L − z)². terms: is overwritten."""
    for place in range(terms.size):
        decoded = np.float32(np.float32(levels[place] * slope) + shift)
        error = np.float32(unit[place] - decoded)
        terms[place] = np.float32(error * error) * heavy[place]
    return halved_apart(terms, terms.size)


@loop
def best_lines(
    blocks: np.ndarray,
    weights: np.ndarray,
    table: np.ndarray,
    slopes: np.ndarray,
    shifts: np.ndarray,
    tiny: np.float32,
    refinements: int,
    scales: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """scales, offsets: `[n]`, get those of each block.

    blocks: `[n, size]`. weights: `[m, size]`, of block i those in row i mod m; `[0, size]` for 1.
    table: levels 1 apart from 0 up. slopes, shifts: to be tried for a block whose values go from 0
    to 1.
    """
    count, size = blocks.shape
    padded = (size + 3) // 4 * 4
    unit, heavy = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    moved, levels = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    terms = np.empty(padded, np.float32)
    one, zero = np.float32(1), np.float32(0)
    top, is_quick, is_weighed = np.float32(table.size - 1), size in SIZES, weights.shape[0] > 0
    heavy[:size] = 1
    for block in range(count):
        if is_weighed:
            heavy[:size] = weights[block % weights.shape[0]]
        if is_weighed or block == 0:
            terms[:] = heavy
            total = max(halved_apart(terms, padded), tiny)
        if is_quick:
            low = np.float32(-even_lines.lowest_negated(blocks[block], heavy, is_weighed, None))
            high = even_lines.highest(blocks[block], heavy, is_weighed, None)
        else:
            low, high = np.float32(np.inf), np.float32(-np.inf)
            for place in range(size):
                if heavy[place] > zero:
                    low = min(low, blocks[block, place])
                    high = max(high, blocks[block, place])
        width = np.float32(high - low)
        safe = width if width > zero else one
        for place in range(size):
            unit[place] = np.float32(blocks[block, place] - low) / safe
        if is_quick:
            middle = np.float32(even_lines.sum_values(unit, heavy, is_weighed, None) / total)
        else:
            terms[:] = unit * heavy
            middle = np.float32(halved_apart(terms, padded) / total)
        slope, shift, least = slopes[0], zero, np.float32(np.inf)
        for attempt in range(slopes.size + refinements):
            if attempt < slopes.size:
                tried, ahead = slopes[attempt], shifts[attempt]
            else:  # the levels of the best line, then the best line for these
                step = slope if slope > zero else one
                if is_quick:
                    line = shift, step, top
                    summed = even_lines.sum_levels(unit, heavy, is_weighed, line)
                    centre = np.float32(summed / total)
                    line_and_means = shift, step, top, centre, middle
                    sums = even_lines.sum_fits(unit, heavy, is_weighed, line_and_means)
                else:
                    snap_moved(unit, shift, step, table, moved, levels)
                    terms[:] = levels * heavy
                    centre = np.float32(halved_apart(terms, padded) / total)
                    sums = summed_lines(unit, heavy, levels, (centre, middle), terms)
                power = max(sums[0], tiny)
                tried = max(np.float32(sums[1] / power), zero)
                ahead = np.float32(middle - np.float32(tried * centre))
            step = tried if tried > zero else one
            if is_quick:
                numbers = ahead, step, top, tried
                error = even_lines.sum_errors(unit, heavy, is_weighed, numbers)
            else:
                snap_moved(unit, ahead, step, table, moved, levels)
                error = summed_errors(unit, heavy, levels, tried, ahead, terms)
            if error < least:
                slope, shift, least = tried, ahead, error
        scales[block] = slope * width
        offsets[block] = low + np.float32(shift * width)

"""The search of `codecs.fitting.scales.best_lines`, a block at a time, in cache.

All arrays are float32, and each operation is rounded to float32, as torch does.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.levels import snap_uniform
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.sums import halved, halved_apart


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

    blocks: `[n, size]`. weights: `[m, size]`, of block i those in row i mod m. table: levels 1
    apart from 0 up. slopes, shifts: to be tried for a block whose values go from 0 to 1.
    """
    count, size = blocks.shape
    padded = (size + 3) // 4 * 4
    unit, heavy = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    moved, levels = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    terms = np.empty(padded, np.float32)
    one, zero = np.float32(1), np.float32(0)
    for block in range(count):
        for place in range(size):
            heavy[place] = weights[block % weights.shape[0], place]
        terms[:] = heavy
        total = max(halved_apart(terms, padded), tiny)
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for place in range(size):
            if heavy[place] > zero:
                low = min(low, blocks[block, place])
                high = max(high, blocks[block, place])
        width = np.float32(high - low)
        safe = width if width > zero else one
        for place in range(size):
            unit[place] = np.float32(blocks[block, place] - low) / safe
        terms[:] = unit * heavy
        middle = np.float32(halved_apart(terms, padded) / total)
        slope, shift, least = slopes[0], zero, np.float32(np.inf)
        for attempt in range(slopes.size + 2 * refinements):
            # a refinement is two steps: the levels of the best line, then a line for these
            is_step = attempt >= slopes.size and (attempt - slopes.size) % 2 == 0
            if attempt < slopes.size:
                tried, ahead = slopes[attempt], shifts[attempt]
            elif is_step:
                tried, ahead = slope, shift
            else:
                terms[:] = levels * heavy
                centre = np.float32(halved_apart(terms, padded) / total)
                for place in range(padded):
                    apart = np.float32(levels[place] - centre) * heavy[place]
                    terms[place] = np.float32(apart) * levels[place]
                power = max(halved_apart(terms, padded), tiny)
                for place in range(padded):
                    apart = np.float32(levels[place] - centre) * heavy[place]
                    terms[place] = np.float32(apart) * np.float32(unit[place] - middle)
                tried = max(np.float32(halved_apart(terms, padded) / power), zero)
                ahead = np.float32(middle - np.float32(tried * centre))
            step = tried if tried > zero else one
            for place in range(padded):
                moved[place] = np.float32(unit[place] - ahead) / step
            snap_uniform(moved, one, table, levels)
            if is_step:
                continue
            for place in range(padded):
                decoded = np.float32(np.float32(levels[place] * tried) + ahead)
                error = np.float32(unit[place] - decoded)
                terms[place] = np.float32(error * error) * heavy[place]
            error_of_all = halved(terms, padded)
            if error_of_all < least:
                slope, shift, least = tried, ahead, error_of_all
        scales[block] = slope * width
        offsets[block] = low + np.float32(shift * width)

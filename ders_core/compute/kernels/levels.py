"""The level nearest to each value, as `codecs.fitting.levels.Levels` defines it.

values: float32 `[n]`. step: float32 above 0. table: the levels, float32 `[n]`, ascending. borders:
halfway between them, float32 `[n − 1]`, and then infinity twice; `[0]` where levels are 1 apart.
bins: int32 `[b]`, how many borders are certainly not above the values of a bin, of which there are
`fine` to 1 and two below the first border; a bin holds at most two borders more. `[0]` where
borders are too close for bins.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import part, part_apart

FEW = 15
"""So many borders are compared with every value, which processors do for several at once."""

TOGETHER = 4
"""Borders that a value is compared with while it is at hand."""


@part
def number_of(
    ratio: np.float32, borders: np.ndarray, bins: np.ndarray, fine: np.float32
) -> np.integer:
    """How many borders are not above the ratio."""
    if bins.size > 0:
        place = np.float32(np.float32(np.float32(ratio - borders[0]) * fine) + np.float32(2))
        top = np.float32(bins.size - 1)
        place = place if place > np.float32(0) else np.float32(0)  # also where it is no number
        code: np.integer = np.uint64(bins[np.uint32(np.int32(place if place < top else top))])
        code += np.uint64(ratio >= borders[code])
        code += np.uint64(ratio >= borders[code])
    else:
        code, half = np.uint64(0), np.uint64(borders.size - 1) // np.uint64(2)
        while half > np.uint64(0):
            code += half if ratio >= borders[code + half - np.uint64(1)] else np.uint64(0)
            half //= np.uint64(2)
    return code


@part
def snap_uniform(
    values: np.ndarray, inverse: np.float32, table: np.ndarray, levels: np.ndarray
) -> None:
    """levels: float32 `[n]`, gets the level nearest to each value times the inverse of a step;
    levels are 1 apart."""
    lowest, top = table[0], np.float32(table.size - 1)
    shift = np.float32(lowest - np.float32(0.5))
    for place in range(values.size):
        code = np.floor(np.float32(np.float32(values[place] * inverse) - shift))
        levels[place] = min(max(code, np.float32(0)), top) + lowest


@part_apart
def snap_to_table(
    values: np.ndarray,
    inverse: np.float32,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    rough: np.ndarray,
    levels: np.ndarray,
) -> None:
    """The same for levels of a table; near a border it may be the other one where there are many.

    rough: float32, the level of each bin, `[0]` where values are compared with borders.
    """
    if table.size <= FEW + 1:
        levels[:] = table[0]
        last = table.size - 1
        for number in range(0, last, TOGETHER):  # after the last border comes infinity
            second, third = min(number + 1, last), min(number + 2, last)
            fourth = min(number + 3, last)
            border, level = borders[number], table[number + 1]
            border_2, level_2 = borders[second], table[min(second + 1, last)]
            border_3, level_3 = borders[third], table[min(third + 1, last)]
            border_4, level_4 = borders[fourth], table[min(fourth + 1, last)]
            for place in range(values.size):
                ratio, found = np.float32(values[place] * inverse), levels[place]
                found = level if ratio >= border else found
                found = level_2 if ratio >= border_2 else found
                found = level_3 if ratio >= border_3 else found
                levels[place] = level_4 if ratio >= border_4 else found
    elif rough.size > 0:
        low, top = borders[0], np.float32(rough.size - 1)
        for place in range(values.size):
            ratio = np.float32(values[place] * inverse)
            bin_of = np.float32(np.float32(np.float32(ratio - low) * fine) + np.float32(2))
            bin_of = bin_of if bin_of > np.float32(0) else np.float32(0)  # also if it is no number
            levels[place] = bin_of if bin_of < top else top
        for place in range(values.size):
            levels[place] = rough[np.uint32(np.int32(levels[place]))]
    else:
        for place in range(values.size):
            ratio = np.float32(values[place] * inverse)
            levels[place] = table[number_of(ratio, borders, bins, fine)]


@part_apart
def nearest_even(
    values: np.ndarray, offset: np.float32, step: np.float32, table: np.ndarray, codes: np.ndarray
) -> None:
    """codes: uint8 `[n]`, gets the number of the level nearest to each value, less an offset, over
    the step; levels are 1 apart."""
    top = np.float32(table.size - 1)
    shift = np.float32(table[0] - np.float32(0.5))
    for place in range(values.size):
        ratio = np.float32(np.float32(values[place] - offset) / step)
        code = np.floor(np.float32(ratio - shift))
        codes[place] = np.uint8(np.int32(min(max(code, np.float32(0)), top)))


@part_apart
def nearest(
    values: np.ndarray,
    step: np.float32,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    codes: np.ndarray,
) -> None:
    """codes: uint8 `[n]`, gets the number of the level nearest to each value over the step. values
    may be overwritten."""
    if borders.size == 0:
        nearest_even(values, np.float32(0), step, table, codes)
        return
    for place in range(values.size):
        values[place] = values[place] / step
    if table.size <= FEW + 1:
        for place in range(values.size):
            codes[place] = 0
        for number in range(table.size - 1):
            border = borders[number]
            for place in range(values.size):
                codes[place] += np.uint8(values[place] >= border)
    else:
        for place in range(values.size):
            codes[place] = np.uint8(number_of(values[place], borders, bins, fine))

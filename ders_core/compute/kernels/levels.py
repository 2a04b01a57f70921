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


@part
def number_of(
    ratio: np.float32, borders: np.ndarray, bins: np.ndarray, fine: np.float32
) -> np.integer:
    """How many borders are not above the ratio."""
    if bins.size > 0:
        place = np.float32(np.float32(np.float32(ratio - borders[0]) * fine) + np.float32(2))
        place = min(max(place, np.float32(0)), np.float32(bins.size - 1))
        code = bins[np.int32(place)]
        code += np.int32(ratio >= borders[code])
        code += np.int32(ratio >= borders[code])
    else:
        code, half = np.int32(0), (borders.size - 1) // 2
        while half > 0:
            code += np.int32(half if ratio >= borders[code + half - 1] else 0)
            half //= 2
    return code


@part
def snap_uniform(
    values: np.ndarray, step: np.float32, table: np.ndarray, levels: np.ndarray
) -> None:
    """levels: float32 `[n]`, gets the level nearest to each value over the step; levels are 1
    apart."""
    lowest, top = table[0], np.float32(table.size - 1)
    shift = np.float32(lowest - np.float32(0.5))
    for place in range(values.size):
        code = np.floor(np.float32(np.float32(values[place] / step) - shift))
        levels[place] = min(max(code, np.float32(0)), top) + lowest


@part_apart
def snap(
    values: np.ndarray,
    step: np.float32,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    levels: np.ndarray,
) -> None:
    """The same for levels of a table."""
    if table.size <= FEW + 1:
        levels[:] = table[0]
        for number in range(table.size - 1):
            border, level = borders[number], table[number + 1]
            for place in range(values.size):
                beyond = np.float32(values[place] / step) >= border
                levels[place] = level if beyond else levels[place]
    else:
        for place in range(values.size):
            ratio = np.float32(values[place] / step)
            levels[place] = table[number_of(ratio, borders, bins, fine)]


@part
def nearest(
    values: np.ndarray,
    step: np.float32,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    codes: np.ndarray,
) -> None:
    """codes: uint8 `[n]`, gets the number of the level nearest to each value over the step."""
    if borders.size == 0:
        top = np.float32(table.size - 1)
        shift = np.float32(table[0] - np.float32(0.5))
        for place in range(values.size):
            code = np.floor(np.float32(np.float32(values[place] / step) - shift))
            codes[place] = np.uint8(np.int32(min(max(code, np.float32(0)), top)))
    elif table.size <= FEW + 1:
        for place in range(values.size):
            codes[place] = 0
        for number in range(table.size - 1):
            border = borders[number]
            for place in range(values.size):
                codes[place] += np.uint8(np.float32(values[place] / step) >= border)
    else:
        for place in range(values.size):
            ratio = np.float32(values[place] / step)
            codes[place] = np.uint8(number_of(ratio, borders, bins, fine))

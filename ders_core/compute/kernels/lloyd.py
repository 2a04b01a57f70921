"""Lloyd's iteration over the bins of a histogram (Lloyd 1957)."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def sweep(table: np.ndarray, places: np.ndarray, before: np.ndarray, sweeps: int) -> None:
    """Move each level to the mean of the bins that are nearest to it, until none moves, or so many
    times. A level that no bin is nearest to stays.

    table: float64 `[levels]`, ascending, before and after. places: float64 `[bins]`, where the bins
    are, ascending. before: float64 `[2, bins + 1]`, of the bins before each: what they weigh, and
    their places times that.
    """
    mass, share = before
    moved = np.empty_like(table)
    for _ in range(sweeps):
        begin, stays = 0, True
        for level in range(len(table)):
            end = len(places)
            if level + 1 < len(table):
                border = (table[level + 1] + table[level]) / 2
                end = np.searchsorted(places, border)
            inside = mass[end] - mass[begin]
            moved[level] = (share[end] - share[begin]) / inside if inside > 0 else table[level]
            stays = stays and moved[level] == table[level]
            begin = end
        if stays:
            return
        for level in range(len(table)):  # they are nearly in order
            value, place = moved[level], level
            while place > 0 and table[place - 1] > value:
                table[place] = table[place - 1]
                place -= 1
            table[place] = value

"""Magnitudes counted by their leading bits."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop

MAGNITUDE = np.uint32(0x7FFFFFFF)


@loop
def count_magnitudes(values: np.ndarray, shift: int, counts: np.ndarray) -> None:
    """values: the bits of float32, uint32 `[n]`. shift: how many of them are left out at the lower
    end. counts: int64 `[2^(31 − shift)]`, is added to."""
    places = np.uint32(shift)
    for place in range(values.size):
        counts[np.uint32(values[place] & MAGNITUDE) >> places] += 1

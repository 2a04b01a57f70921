"""Magnitudes counted by their leading bits."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop


@loop
def count_magnitudes(
    values: np.ndarray, shift: int, classes: np.ndarray, counts: np.ndarray
) -> None:
    """values: the bits of float32, uint32 `[n]`. shift: how many of them are left out at the lower
    end. classes: uint8 `[n]`, or `[0]` where there is one. counts: int64
    `[classes, 2^(31 − shift)]`, is added to."""
    magnitude, places = np.uint32(0x7FFFFFFF), np.uint32(shift)
    if counts.shape[0] == 1:
        alone = counts[0]
        for place in range(values.size):
            alone[np.uint32(values[place] & magnitude) >> places] += 1
    else:
        for place in range(values.size):
            bits = np.uint32(values[place] & magnitude)
            counts[classes[place], bits >> places] += 1

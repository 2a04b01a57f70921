"""Single entries of a delta, read and written at flat places.

places: int64 `[n]`. values: float32 `[n]`. weights, base: bits of floats, of a kind of `floats`.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop


@loop
def gather(
    weights: np.ndarray, base: np.ndarray, kind: int, places: np.ndarray, values: np.ndarray
) -> None:
    """values: get weight − base."""
    for number in range(places.size):
        place = places[number]
        values[number] = widen(weights[place], kind) - widen(base[place], kind)


@loop
def add(
    values: np.ndarray, places: np.ndarray, base: np.ndarray, kind: int, weights: np.ndarray
) -> None:
    """weights: get value + base, but for values at places below 0."""
    for number in range(places.size):
        place = places[number]
        if place >= 0:
            total = np.float32(values[number] + widen(base[place], kind))
            weights[place] = narrow(total, kind)


@loop
def copy(base: np.ndarray, kind: int, weights: np.ndarray) -> None:
    """weights: get base + 0, which gives zeros no sign."""
    for place in range(weights.size):
        weights[place] = narrow(np.float32(widen(base[place], kind) + np.float32(0)), kind)

"""Values picked out by magnitude, for `codecs.fitting.select`.

values: float32 `[n]`, finite. A key is the bits of a magnitude; keys order as magnitudes do.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import bits_of
from ders_core.compute.kernels.loop import loop

MAGNITUDE = np.uint32(0x7FFFFFFF)


@loop
def collect(
    values: np.ndarray,
    least: np.uint32,
    begin: int,
    filled: int,
    places: np.ndarray,
    keys: np.ndarray,
) -> int:
    """Append the keys that are at least `least`, and begin + the places of these values; returns
    how many there are then. places: int64 `[m]`. keys: uint32 `[m]`; both of enough room."""
    for place in range(values.size):
        key = np.uint32(bits_of(values[place]) & MAGNITUDE)
        if key >= least:
            places[filled], keys[filled] = begin + place, key
            filled += 1
    return filled


@loop
def count_low(keys: np.ndarray, high: np.uint32, counts: np.ndarray) -> None:
    """counts: int64 `[2^16]`, how often each lower half comes with this higher half."""
    for number in range(keys.size):
        if keys[number] >> np.uint32(16) == high:
            counts[keys[number] & np.uint32(0xFFFF)] += 1


@loop
def choose(
    keys: np.ndarray, threshold: np.uint32, ties: int, places: np.ndarray, chosen: np.ndarray
) -> None:
    """chosen: int64, gets the places of keys above the threshold, and of the first ties with it."""
    filled = 0
    for number in range(keys.size):
        key = keys[number]
        is_tie = key == threshold and ties > 0
        if key > threshold or is_tie:
            chosen[filled] = places[number]
            filled += 1
        if is_tie:
            ties -= 1

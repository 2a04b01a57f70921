"""Random numbers of a seed, as `codecs.coding.prng` defines them."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop

UNIT = np.float32(1 / (1 << 23))
HALF = np.float32(0.5)
LOW_HALF = 0xFFFFFFFF


@loop
def mix32(value: np.uint32) -> np.uint32:
    """A 32-bit finalizer (lowbias32, C. Wellons 2018)."""
    value ^= value >> np.uint32(16)
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value ^= value >> np.uint32(15)
    value = np.uint32(value * np.uint32(0x846CA68B))
    return np.uint32(value ^ (value >> np.uint32(16)))


@loop
def fill(numbers: np.ndarray, begin: int, first: np.uint32, second: np.uint32) -> None:
    """numbers: float32 `[n]`, gets those in (0, 1) of the counters from `begin` on. first, second:
    keys of the seed."""
    place = 0
    while place < numbers.size:  # more than once only where the lower halves of counters run out
        low, high = (begin + place) & LOW_HALF, (begin + place) >> 32
        key = np.uint32(second ^ np.uint32(high))
        count = min(numbers.size - place, LOW_HALF + 1 - low)
        for number in range(count):
            counter = np.uint32(np.uint32(low) + np.uint32(number))
            mixed = mix32(np.uint32(mix32(np.uint32(counter ^ first)) ^ key))
            upper = np.float32(np.int32(mixed >> np.uint32(9)))
            numbers[place + number] = (upper + HALF) * UNIT
        place += count

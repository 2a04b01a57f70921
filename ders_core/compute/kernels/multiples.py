"""Values rounded to multiples of a step.

values: float32 `[n]`. step: float32. codes: uint16 `[n]`, gets the multiples plus `middle`; BEYOND
where one is beyond `most` or no number. The loops that round return how many are.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.draws import HALF, LOW_HALF, UNIT, mix32
from ders_core.compute.kernels.loop import loop

BEYOND = np.uint16(0xFFFF)

BLOCK = 1024
"""Values at a time."""


@loop
def nearest(
    values: np.ndarray,
    step: np.float32,
    threshold: np.float32,
    middle: int,
    most: int,
    codes: np.ndarray,
) -> int:
    """⌊|v| / step + threshold⌋ with the sign of v."""
    zero, limit, beyond = np.int32(middle), np.float32(most), np.uint32(0)
    for place in range(values.size):
        ratio = np.float32(abs(values[place]) / step) + threshold
        size = np.int32(min(ratio, limit))
        signed = np.int32(-size) if values[place] < 0 else size
        within = ratio <= limit
        codes[place] = np.uint16(np.int32(zero + signed)) if within else BEYOND
        beyond = np.uint32(beyond + np.uint32(not within))
    return int(beyond)


@loop
def unbiased(
    values: np.ndarray,
    step: np.float32,
    first: np.uint32,
    second: np.uint32,
    begin: int,
    middle: int,
    most: int,
    codes: np.ndarray,
) -> int:
    """⌊v / step + u⌋ within ±most, with u in (0, 1) drawn for each place, which are counted from
    `begin` on; first, second: as of `draws.fill`."""
    zero, limit, beyond = np.int32(middle), np.float32(most), np.uint32(0)
    largest, least = np.int32(most), np.int32(-most)
    following = np.arange(BLOCK, dtype=np.uint32)
    for start in range(0, values.size, BLOCK):
        part, coded = values[start : start + BLOCK], codes[start : start + BLOCK]
        low, high = np.uint32((begin + start) & LOW_HALF), np.uint32((begin + start) >> 32)
        for place in range(part.size):
            counter = np.uint32(low + following[place])
            key = np.uint32(second ^ np.uint32(high + np.uint32(counter < low)))
            mixed = mix32(np.uint32(mix32(np.uint32(counter ^ first)) ^ key))
            drawn = (np.float32(np.int32(mixed >> np.uint32(9))) + HALF) * UNIT
            ratio = np.float32(part[place] / step)
            multiple = np.int32(np.floor(np.float32(ratio + drawn)))
            clamped = min(max(multiple, least), largest)
            within = abs(ratio) <= limit
            coded[place] = np.uint16(np.int32(clamped + zero)) if within else BEYOND
            beyond = np.uint32(beyond + np.uint32(not within))
    return int(beyond)


@loop
def add_up(values: np.ndarray, codes: np.ndarray, unit: float, totals: np.ndarray) -> None:
    """Add values / unit to totals, float64, of their codes."""
    for place in range(values.size):
        totals[codes[place]] += np.float64(values[place]) / unit

"""Values rounded to multiples of a step, and the multiples counted, in one pass.

values: float32 `[n]`. step: float32. classes: uint8 `[n]`, below the rows of counts. codes: int32
`[n]`, gets the multiples plus the middle of counts; −1 where one is beyond `most` or no number,
which is not counted. counts: int64 `[classes, 2k + 1]` with k ≥ most, is added to. The loops return
how many are beyond.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.draws import fill
from ders_core.compute.kernels.loop import loop

BEYOND = np.int32(-1)

BLOCK = 1024
"""Values at a time: processors round several at once, but count one after another."""


LANES = 2
NEAR = 32
"""Codes at most so far from the middle are counted in LANES turns: a processor waits for a count
before it adds to the same one again."""


@loop
def count(codes: np.ndarray, classes: np.ndarray, counts: np.ndarray, near: np.ndarray) -> int:
    """Add codes to counts, or to near, int32 `[LANES, classes, 2 · NEAR]`; how many are BEYOND,
    which are not counted."""
    beyond, first = 0, np.uint32(counts.shape[1] // 2 - NEAR)
    for place in range(codes.size):
        code = codes[place]
        shifted = np.uint32(np.uint32(code) - first)
        if shifted < np.uint32(2 * NEAR):
            near[place % LANES, classes[place], shifted] += 1
        elif code == BEYOND:
            beyond += 1
        else:
            counts[classes[place], code] += 1
    return beyond


@loop
def add_near(near: np.ndarray, counts: np.ndarray) -> None:
    """Add what was counted in turns."""
    first = counts.shape[1] // 2 - NEAR
    for lane in range(near.shape[0]):
        for number in range(near.shape[1]):
            for place in range(near.shape[2]):
                counts[number, first + place] += near[lane, number, place]


@loop
def nearest(
    values: np.ndarray,
    step: np.float32,
    threshold: np.float32,
    most: int,
    classes: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
) -> int:
    """⌊|v| / step + threshold⌋ with the sign of v."""
    middle, limit, beyond = np.int32(counts.shape[1] // 2), np.float32(most), 0
    near = np.zeros((LANES, counts.shape[0], 2 * NEAR), dtype=np.int32)
    for begin in range(0, values.size, BLOCK):
        part, coded = values[begin : begin + BLOCK], codes[begin : begin + BLOCK]
        for place in range(part.size):
            ratio = np.float32(abs(part[place]) / step) + threshold
            size = np.int32(min(ratio, limit))
            code = middle - size if part[place] < 0 else middle + size
            coded[place] = code if ratio <= limit else BEYOND
        beyond += count(coded, classes[begin : begin + BLOCK], counts, near)
    add_near(near, counts)
    return beyond


@loop
def unbiased(
    values: np.ndarray,
    step: np.float32,
    first: np.uint32,
    second: np.uint32,
    most: int,
    classes: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
) -> int:
    """⌊v / step + u⌋ within ±most, with u in (0, 1) drawn for each place; first, second: as of
    `draws.fill`."""
    middle, limit, beyond = np.int32(counts.shape[1] // 2), np.float32(most), 0
    near = np.zeros((LANES, counts.shape[0], 2 * NEAR), dtype=np.int32)
    drawn = np.empty(BLOCK, dtype=np.float32)
    for begin in range(0, values.size, BLOCK):
        part, coded = values[begin : begin + BLOCK], codes[begin : begin + BLOCK]
        fill(drawn, begin, first, second)
        for place in range(part.size):
            ratio = np.float32(part[place] / step)
            moved = min(max(np.floor(ratio + drawn[place]), -limit), limit)
            coded[place] = np.int32(moved) + middle if abs(ratio) <= limit else BEYOND
        beyond += count(coded, classes[begin : begin + BLOCK], counts, near)
    add_near(near, counts)
    return beyond

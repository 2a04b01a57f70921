"""Positions drawn from a seed, as `codecs.coding.prng.position_chunks` defines them."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.draws import mix32
from ders_core.compute.kernels.loop import loop, part_apart

BLOCK = 1024
"""Positions at a time: processors mix several at once."""


@part_apart
def two_rounds(
    value: np.uint32, low: np.uint32, mask: np.uint32, even: np.uint32, odd: np.uint32
) -> np.uint32:
    """An even and an odd round of a Feistel network. low, mask: bits of the low half, and a mask of
    all bits."""
    ones = np.uint32(np.uint32(np.uint32(1) << low) - np.uint32(1))
    left, right = np.uint32(value >> low), np.uint32(value & ones)
    left = np.uint32(left ^ np.uint32(mix32(np.uint32(right ^ even)) & np.uint32(mask >> low)))
    right = np.uint32(right ^ np.uint32(mix32(np.uint32(left ^ odd)) & ones))
    return np.uint32(np.uint32(left << low) | right)


@part_apart
def permute(values: np.ndarray, count: int, bits: int, keys: np.ndarray) -> None:
    """Permute the first `count` numbers below 2^bits, uint32, in place."""
    low, mask = np.uint32(bits // 2), np.uint32((1 << bits) - 1)
    for even in range(0, keys.size, 2):
        first, second = keys[even], keys[even + 1]
        for place in range(count):
            values[place] = two_rounds(values[place], low, mask, first, second)


@loop
def draw(positions: np.ndarray, begin: int, size: int, bits: int, keys: np.ndarray) -> None:
    """positions: int64 `[n]`, get the images of begin, begin + 1 … under the permutation of
    [0, size). bits: below 32, of size − 1. keys: of the rounds, uint32 `[6]`."""
    values, outside = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.int32)
    for first in range(0, positions.size, BLOCK):
        count = min(BLOCK, positions.size - first)
        for place in range(count):
            values[place] = np.uint32(begin + first + place)
            outside[place] = place
        while count > 0:  # what falls outside goes through again
            permute(values, count, bits, keys)
            still = 0
            for number in range(count):
                place, value = outside[number], values[number]
                positions[first + place] = value
                outside[still], values[still] = place, value
                still += int(value >= size)
            count = still

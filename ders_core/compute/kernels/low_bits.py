"""Low bits of differences, which a stream has one after another as they are: taken off it again."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import part_apart

WORD_BYTES = 8


@part_apart
def word_from(noise: np.ndarray, byte: np.uint64) -> np.uint64:
    """Eight bytes from one on, the first lowest: processors read them as one number."""
    word = np.uint64(noise[byte])
    for number in range(1, WORD_BYTES):
        word |= np.uint64(np.uint64(noise[byte + np.uint64(number)]) << np.uint64(8 * number))
    return word


@part_apart
def take_low_bits(
    widths: np.ndarray, noise: np.ndarray, bit: np.uint64, parts: np.ndarray
) -> np.uint64:
    """Fill parts with bits of noise from one on, of each its low bits first, and others above them;
    returns the bit after them. widths: uint8, how many low bits each has. noise: uint8, WORD_BYTES
    more than are used."""
    wide = parts.dtype.type
    for place in range(widths.size):
        parts[place] = wide(word_from(noise, bit >> np.uint64(3)) >> np.uint64(bit & np.uint64(7)))
        bit += np.uint64(widths[place])
    return bit

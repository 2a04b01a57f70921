"""Ascending positions as bitmaps: see `codecs.coding.bitmaps`.

bitmap: uint8, eight positions a byte, the first in the lowest bit. positions: int64, ascending.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.words import WORD_BYTES, trailing_zeros, word_at


@loop
def mark(positions: np.ndarray, bitmap: np.ndarray) -> None:
    """Set the bits of positions in a bitmap of zeros."""
    for number in range(positions.size):
        place = np.uint64(positions[number])
        bit = np.uint8(1 << (place & np.uint64(7)))
        bitmap[place >> np.uint64(3)] |= bit


@loop
def find(bitmap: np.ndarray, length: int, positions: np.ndarray) -> int:
    """Fill positions with those of the ones below `length`, in order, as many as it holds. Returns
    how many it got."""
    count = 0
    for begin in range(0, bitmap.size, WORD_BYTES):
        word = word_at(bitmap, begin)
        while word != 0:
            place = 8 * begin + trailing_zeros(word)
            if count == positions.size or place >= length:
                return count
            positions[count] = place
            count += 1
            word &= np.uint64(word - np.uint64(1))
    return count

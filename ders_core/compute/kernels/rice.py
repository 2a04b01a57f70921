"""Gaps between ascending positions in Rice code: see `codecs.coding.rice`.

positions: int64 `[n]`, ascending. low: uint8 `[n]`, the low `low_bits` bits of each gap, 0 to 8.
unary: uint8, of each gap as many zeros as its high part says, and a one; the first in the lowest
bit.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.words import WORD_BYTES, trailing_zeros, word_at


@loop
def high_sum(positions: np.ndarray, low_bits: int) -> int:
    """Σ gap >> low_bits."""
    total, before = np.int64(0), np.int64(-1)
    for number in range(positions.size):
        position = positions[number]
        total += (position - before - 1) >> low_bits
        before = position
    return int(total)


@loop
def split(positions: np.ndarray, low_bits: int, low: np.ndarray, unary: np.ndarray) -> None:
    """Fill low, and unary, which is zeros and has a bit for each position and each unit of
    `high_sum`."""
    before, end, mask = np.int64(-1), np.int64(-1), np.int64((1 << low_bits) - 1)
    for number in range(positions.size):
        position = positions[number]
        gap = position - before - 1
        before = position
        low[number] = np.uint8(gap & mask)
        end += (gap >> low_bits) + 1
        unary[np.uint64(end) >> np.uint64(3)] |= np.uint8(1 << (end & 7))


@loop
def join(unary: np.ndarray, low: np.ndarray, low_bits: int, positions: np.ndarray) -> int:
    """Fill positions. Returns how many gaps unary has; where there are more, or fewer, positions
    are not to be used."""
    count, ended, before = 0, np.int64(-1), np.int64(-1)
    for begin in range(0, unary.size, WORD_BYTES):
        word = word_at(unary, begin)
        while word != 0:
            if count == positions.size:
                return count + 1
            end = 8 * begin + trailing_zeros(word)
            before += ((end - ended - 1) << low_bits) + np.int64(low[count]) + 1
            ended = end
            positions[count] = before
            count += 1
            word &= np.uint64(word - np.uint64(1))
    return count

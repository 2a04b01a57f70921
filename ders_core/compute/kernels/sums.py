"""Sums in the order of `compute.sums.halved_sum`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import part, part_apart


@part
def halved(terms: np.ndarray, count: int) -> np.floating:
    """The sum of the first `count` terms, at least one, which are overwritten."""
    while count > 32:
        half = (count + 1) // 2
        for place in range(count - half):
            terms[place] += terms[place + half]
        count = half
    if count == 32:  # of a block of 128; without a loop that asks how long it is
        for place in range(16):
            terms[place] += terms[place + 16]
        count = 16
    if count == 16:
        for place in range(8):
            terms[place] += terms[place + 8]
        count = 8
    while count > 8:
        half = (count + 1) // 2
        for place in range(count - half):
            terms[place] += terms[place + half]
        count = half
    total = terms[0]
    for place in range(1, count):
        total += terms[place]
    return total


@part_apart
def halved_apart(terms: np.ndarray, count: int) -> np.floating:
    """The same, not copied into loops: takes longer to call, and less to compile."""
    return halved(terms, count)

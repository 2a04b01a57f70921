"""Weights out of a base and deltas."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop

NOT_A_NUMBER = np.uint32(0x7FC0)


@loop
def add_bfloat16(base: np.ndarray, delta: np.ndarray, weight: np.ndarray) -> None:
    """base, weight: uint16 `[n]`, the bits of bfloat16; weight is filled. delta: float32 `[n]`. The
    sum is rounded to the nearest, halfway to the even one."""
    half, one, last = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)
    for place in range(weight.size):
        start = np.uint32(np.uint32(base[place]) << half).view(np.float32)
        total = np.float32(start + delta[place])
        bits = total.view(np.uint32)
        rounded = np.uint32(bits + last + (bits >> half & one)) >> half
        weight[place] = rounded if total == total else NOT_A_NUMBER


@loop
def add_float32(base: np.ndarray, delta: np.ndarray, weight: np.ndarray) -> None:
    """All float32 `[n]`; weight is filled."""
    for place in range(weight.size):
        weight[place] = base[place] + delta[place]

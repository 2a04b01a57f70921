"""Averages over experts, element by element, in one pass over their weights.

experts: bits of floats `[K, n]`, of a kind of `floats`. average: `[n]`, alike.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop

BLOCK = 1024
"""Elements at a time, of all experts."""


@loop
def mean(
    experts: np.ndarray, kind: int, weights: np.ndarray, count: np.float32, average: np.ndarray
) -> None:
    """The sum over experts in their order, in float32, over count. weights: float32 `[K]`, what
    each expert is multiplied by; `[0]` for 1."""
    total = np.empty(BLOCK, np.float32)
    for begin in range(0, average.size, BLOCK):
        size = min(BLOCK, average.size - begin)
        total[:] = 0
        for expert in range(experts.shape[0]):
            values = experts[expert, begin : begin + size]
            if weights.size > 0:
                weight = weights[expert]
                for place in range(size):
                    total[place] += np.float32(widen(values[place], kind) * weight)
            else:
                for place in range(size):
                    total[place] += widen(values[place], kind)
        for place in range(size):
            average[begin + place] = narrow(np.float32(total[place] / count), kind)


@loop
def median(experts: np.ndarray, kind: int, average: np.ndarray) -> None:
    """The lower of two in the middle; NaN where one is, and zero without its sign."""
    many, middle = experts.shape[0], (experts.shape[0] - 1) // 2
    values = np.empty((many, BLOCK), np.float32)
    unknown = np.empty(BLOCK, np.uint8)
    for begin in range(0, average.size, BLOCK):
        size = min(BLOCK, average.size - begin)
        unknown[:] = 0
        for expert in range(many):
            for place in range(size):
                value = widen(experts[expert, begin + place], kind)
                values[expert, place] = value
                unknown[place] |= np.uint8(value != value)
        for least in range(middle + 1):  # the least of what is left comes to its place
            for expert in range(many - 1, least, -1):
                upper, lower = values[expert], values[expert - 1]
                for place in range(size):
                    left, right = lower[place], upper[place]
                    lower[place] = right if right < left else left
                    upper[place] = left if right < left else right
        for place in range(size):
            value = np.float32(values[middle, place] + np.float32(0))
            value = value if unknown[place] == 0 else np.float32(np.nan)
            average[begin + place] = narrow(value, kind)

"""Means over the windows of a text, and where they lie: the bootstrap over windows.

Tokens of one window share its context, so windows are drawn again, not tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
INTERVAL = 0.95
LEAST_WINDOWS = 4
"""Of each text: fewer say nothing about how much windows differ."""

DRAWN_AT_ONCE = 1_000_000
"""Windows; what bounds the memory of a long text."""


@dataclass(frozen=True)
class Interval:
    """A mean over windows, and where it lies with a probability of INTERVAL."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From windows drawn again with replacement."""
        return cls.of_texts([values], [1.0])

    @classmethod
    def of_texts(cls, texts: Sequence[Sequence[float]], weights: Sequence[float]) -> Interval:
        """The weighted mean of several texts' means. Each text keeps its number of windows, since
        what is asked is how sure the mean over these texts is, not over others."""
        shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        random = np.random.default_rng(0)
        mean, drawn = 0.0, np.zeros(RESAMPLES)
        for share, values in zip(shares, texts, strict=True):
            windows = np.asarray(values, dtype=np.float64)
            mean += float(share * windows.mean())
            drawn += share * _means_drawn_again(windows, random)
        low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        return cls(mean, float(low), float(high))


def _means_drawn_again(windows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    count = len(windows)
    rows = max(1, DRAWN_AT_ONCE // count)
    means = [
        windows[random.integers(count, size=(min(rows, RESAMPLES - begin), count))].mean(1)
        for begin in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)

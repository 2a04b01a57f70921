"""Weights minus their base, and experts' averages, in float32."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import widen
from ders_core.compute.kernels.loop import loop


@loop
def subtract(weights: np.ndarray, base: np.ndarray, kind: int, deltas: np.ndarray) -> None:
    """deltas: float32 `[n]`. weights, base: bits of floats `[n]`, of a kind of `floats`."""
    for place in range(deltas.size):
        deltas[place] = widen(weights[place], kind) - widen(base[place], kind)

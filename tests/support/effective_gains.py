"""Gains of deltas in float64, by the definitions, where inputs hang together with nothing."""

from __future__ import annotations

import numpy as np
from support.codec_support import double

from ders_core.codecs.curvature import Curvature


def weighted_products(decoded: np.ndarray, delta: np.ndarray, curvature: Curvature) -> np.ndarray:
    """Σ C Δ̂ Δ and Σ C Δ Δ."""
    rows, columns = double(curvature.rows), double(curvature.columns)
    weights = np.outer(rows, columns) / rows.sum()
    return np.array([(weights * one * delta).sum() for one in (decoded, delta)])


def effective(decoded: np.ndarray, delta: np.ndarray, curvature: Curvature) -> float:
    """0.6 of the way from the plain gain to that by curvature."""
    shared, energy = weighted_products(decoded, delta, curvature)
    plain = (decoded * delta).sum() / (delta**2).sum()
    return float(0.4 * plain + 0.6 * shared / energy)

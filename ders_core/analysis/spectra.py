"""Singular values of the deltas, and what they say about rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

DOUBLE_BELOW = 1536
"""Matrices with a shorter side up to this get their Gram matrix in float64."""

POINTS = 256
"""At most so many singular values are kept for drawing; sums are exact all the same."""


@dataclass(frozen=True)
class Spectrum:
    """index (1-based), singular_value, energy (cumulative share of Σσ²): arrays of equal length.

    effective_rank: exp of the entropy of σ/Σσ (Roy and Vetterli 2007). stable_rank: Σσ²/σ₁².
    """

    index: np.ndarray
    singular_value: np.ndarray
    energy: np.ndarray
    effective_rank: float
    stable_rank: float


def singular_values(delta: torch.Tensor) -> np.ndarray:
    """All singular values of a float32 matrix `[out, in]`, descending, float64 `[min(out, in)]`.

    From the eigenvalues of the shorter side's Gram matrix: in float64 they are right to about 1e−8
    of σ₁, in float32 (large matrices) to about 3e−4 of σ₁.
    """
    thin = delta if delta.shape[0] <= delta.shape[1] else delta.T
    if thin.shape[0] <= DOUBLE_BELOW:
        thin = thin.double()
    squares = torch.linalg.eigvalsh(thin @ thin.T).flip(0).clamp_min(0)
    values: np.ndarray = squares.double().sqrt().cpu().numpy()
    return values


def spectrum(delta: torch.Tensor) -> Spectrum:
    """The spectrum of one delta `[out, in]` float32."""
    sigma = singular_values(delta)
    energy = np.cumsum(sigma**2)
    total, mass = (float(energy[-1]), float(sigma.sum())) if sigma.size else (0.0, 0.0)
    if total > 0:
        share = sigma[sigma > 0] / mass
        effective = float(np.exp(-(share * np.log(share)).sum()))
        stable = total / float(sigma[0] ** 2)
        energy = np.minimum(energy / total, 1.0)
    else:
        effective = stable = 0.0
        energy = np.ones_like(energy)
    chosen = np.unique(np.geomspace(1, max(sigma.size, 1), min(POINTS, sigma.size)).round())
    index = chosen.astype(np.int64)
    return Spectrum(index, sigma[index - 1], energy[index - 1], effective, stable)

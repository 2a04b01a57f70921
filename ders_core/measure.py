"""Relative errors of weights, summed in float64."""

from __future__ import annotations

import torch


def squared(tensor: torch.Tensor) -> float:
    """‖·‖² summed in float64, a chunk at a time."""
    flat = tensor.reshape(-1)
    return sum(float(chunk.double().square().sum()) for chunk in flat.split(1 << 22))


def relative_errors(error: float, delta_energy: float, weight_energy: float) -> tuple[float, float]:
    """(‖Ŵ−W‖/‖Δ‖, ‖Ŵ−W‖/‖W‖) from sums of squares; 0 where there was nothing to lose."""
    return (
        (error / delta_energy) ** 0.5 if delta_energy else 0.0,
        (error / weight_energy) ** 0.5 if weight_energy else 0.0,
    )


def output_squared(error: torch.Tensor, moments: torch.Tensor) -> float:
    """E‖E·x‖² of inputs with the second moments `[in, in]`, or `[in]` their diagonal."""
    own = error.float()
    heavy = own * moments if moments.dim() == 1 else own @ moments
    return max(float((heavy * own).sum(dtype=torch.float64)), 0.0)

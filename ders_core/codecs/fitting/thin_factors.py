"""Thin factors of a delta: the left one that suits a given right one best."""

from __future__ import annotations

from ders_core.compute.pieces import largest_magnitude
from ders_core.later import torch

RIDGE = 1e-9
"""Share of R·Rᵀ's mean diagonal that is added to it, so that it can always be solved."""


def fitted_left(
    delta: torch.Tensor, right: torch.Tensor, moments: torch.Tensor | None
) -> torch.Tensor:
    """argmin over L of E‖(Δ − L·R)x‖², `[out, rank]`."""
    (unit, scale), (thin, width) = unit_of(delta), unit_of(right)
    weighed = thin
    if moments is not None:
        inputs = moments.to(right.device)
        weighed = thin * inputs if inputs.dim() == 1 else thin @ inputs
    power = (weighed @ thin.T).double()
    power.diagonal().add_(RIDGE * (float(power.diagonal().mean()) or 1.0))
    left: torch.Tensor = torch.linalg.solve(power, (weighed @ unit.T).double()).T
    return (left * (scale / width)).float()


def unit_of(matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The matrix over its largest magnitude, and that magnitude (1 for zeros), so that no square
    over- or underflows."""
    largest = largest_magnitude(matrix)
    return matrix / (largest or 1.0), largest or 1.0

"""Thin factors of a delta: the left one that suits a given right one best."""

from __future__ import annotations

from ders_core.codecs.fitting.delta_products import products_of
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.later import torch

RIDGE = 1e-9
"""Share of R·Rᵀ's mean diagonal that is added to it, so that it can always be solved."""


def fitted_left(deltas: Deltas, right: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
    """argmin over L of E‖(Δ − L·R)x‖², `[out, rank]`."""
    (unit, scale), (thin, width) = products_of(deltas), unit_of(right)
    weighed = thin
    if moments is not None:
        inputs = moments.to(right.device)
        weighed = thin * inputs if inputs.dim() == 1 else thin @ inputs
    power = (weighed @ thin.T).double()
    mean = power.diagonal().mean()
    power.diagonal().add_(RIDGE * torch.where(mean == 0, 1.0, mean))
    # a check that it has an inverse would wait for a GPU; the ridge makes sure of that
    left: torch.Tensor = torch.linalg.solve_ex(power, unit.times(weighed.mT).mT.double()).result.T
    return (left * (scale / width)).float()


def unit_of(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix over its largest magnitude, and that magnitude (1 for zeros), float64 `[]`, so
    that no square over- or underflows."""
    if not matrix.numel():
        return matrix, matrix.new_ones((), dtype=torch.float64)
    low, high = matrix.aminmax()
    largest = torch.maximum(-low, high).double()
    largest = torch.where(largest > 0, largest, 1.0)
    return matrix / largest, largest

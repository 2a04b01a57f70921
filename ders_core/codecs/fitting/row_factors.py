"""The factor of each row that brings an approximation nearest to its delta, or that gives back as
much of it as there was."""

from __future__ import annotations

from ders_core.later import torch


def row_factors(
    delta: torch.Tensor, approximation: torch.Tensor, moments: torch.Tensor | None
) -> torch.Tensor:
    """argmin over s of E‖(Δ_r − s·Δ̂_r) x‖² for each row r, float32 `[out]`; 1 where Δ̂_r is zero.

    delta, approximation: `[out, in]` float32. moments: E[x xᵀ] `[in, in]` or its diagonal `[in]`;
    None: as if all inputs were alike.
    """
    largest = _largest(delta)
    weighed = _weighed(approximation, moments) / largest
    power = ((approximation / largest) * weighed).sum(1)
    shared = ((delta / largest) * weighed).sum(1)
    return torch.where(power > 0, shared / torch.where(power > 0, power, 1.0), 1.0)


def gain_of_rows(
    delta: torch.Tensor, approximation: torch.Tensor, moments: torch.Tensor | None
) -> torch.Tensor:
    """s with E⟨s·Δ̂_r x, Δ_r x⟩ = E(Δ_r x)² for each row r, float32 `[out]`; 1 where Δ̂_r gives
    nothing of it back. Parameters as of `row_factors`."""
    largest = _largest(delta)
    weighed = _weighed(delta, moments) / largest
    energy = ((delta / largest) * weighed).sum(1)
    shared = ((approximation / largest) * weighed).sum(1)
    usual = (shared > 0) & (energy > 0)
    return torch.where(usual, energy / torch.where(usual, shared, 1.0), 1.0)


def _largest(delta: torch.Tensor) -> torch.Tensor | float:
    return delta.abs().amax().clamp_min(1e-30) if delta.numel() else 1.0


def _weighed(rows: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
    if moments is None:
        return rows
    on_device = moments.to(rows.device)
    return rows * on_device if on_device.dim() == 1 else rows @ on_device

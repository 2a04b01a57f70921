"""The factor of each row that brings an approximation nearest to its delta: least squares."""

from __future__ import annotations

import torch


def row_factors(
    delta: torch.Tensor, approximation: torch.Tensor, moments: torch.Tensor | None
) -> torch.Tensor:
    """argmin over s of E‖(Δ_r − s·Δ̂_r) x‖² for each row r, float32 `[out]`; 1 where Δ̂_r is zero.

    delta, approximation: `[out, in]` float32. moments: E[x xᵀ] `[in, in]` or its diagonal `[in]`;
    None: as if all inputs were alike.
    """
    if moments is None:
        weighed = approximation
    elif moments.dim() == 1:
        weighed = approximation * moments.to(approximation.device)
    else:
        weighed = approximation @ moments.to(approximation.device)
    largest = delta.abs().amax().clamp_min(1e-30) if delta.numel() else 1.0
    power = ((approximation / largest) * (weighed / largest)).sum(1)
    shared = ((delta / largest) * (weighed / largest)).sum(1)
    return torch.where(power > 0, shared / torch.where(power > 0, power, 1.0), 1.0)

"""Scales in 8 bits: shares of the largest one of their row."""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.later import torch

FULL_SCALE = 255
"""The share of a row's largest scale, `tops`."""


def in_shares(scales: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """scales: float32 `[out, blocks]`, not negative, as parts: `scales` in uint8, `tops` `[out]` in
    `dtype`. What is above 0 stays so, if its row's largest does."""
    tops = scales.amax(1) if scales.shape[1] else scales.new_zeros(len(scales))
    stored = tops.to(dtype)
    top = torch.where(stored > 0, stored.float(), 1.0).unsqueeze(1)
    shares = (scales / top * FULL_SCALE).round_().clamp_(0, FULL_SCALE)
    shares = torch.where(scales > 0, shares.clamp_min(1), shares)
    return {"scales": shares.to(torch.uint8), "tops": stored}


def from_shares(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The inverse: float32 `[..., out, blocks]`."""
    return parts["scales"].float() * (parts["tops"].float() / FULL_SCALE).unsqueeze(-1)

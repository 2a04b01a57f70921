"""Whether tensors are the same, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def same_parts(parts: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether they have the same names and bits."""
    return parts.keys() == others.keys() and all(
        same_bits(part, others[name]) for name, part in parts.items()
    )


def same_bits(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and bits: −0 is not 0."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    raw, wanted = (each.contiguous().view(-1).view(torch.uint8) for each in (tensor, other))
    return torch.equal(raw, wanted)

"""Pairs of a token and an expert, put together by expert without waiting for the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.later import torch

SIZE = 16
"""Pairs of a block: the fewest rows that a matrix unit multiplies."""


@dataclass(frozen=True)
class PairBlocks:
    """pairs: int32 `[blocks, SIZE]`, numbers of pairs that have one expert; −1 for none.
    experts: int32 `[blocks]`, −1 for a block without pairs."""

    pairs: torch.Tensor
    experts: torch.Tensor

    @classmethod
    def of(cls, chosen: torch.Tensor, experts: int) -> PairBlocks:
        """chosen: int64 `[pairs]`; a number that none of the experts has stands for none. There
        are as many blocks as any choice may need."""
        count, device = chosen.numel(), chosen.device
        blocks = (count + min(count, experts) * (SIZE - 1)) // SIZE
        known = torch.where((chosen >= 0) & (chosen < experts), chosen, experts)
        counts = torch.zeros(experts + 1, dtype=torch.int64, device=device)
        counts.scatter_add_(0, known, torch.ones_like(known))
        ends = ((counts[:experts] + SIZE - 1) // SIZE * SIZE).cumsum(0)
        order = known.argsort(stable=True)
        owners = known[order]
        ranks = torch.arange(count, device=device) - (counts.cumsum(0) - counts)[owners]
        begins = torch.nn.functional.pad(ends, (1, 0))[owners]
        outside = blocks * SIZE  # one place more, for pairs of no expert
        places = torch.where(owners < experts, begins + ranks, outside)
        pairs = torch.full((outside + 1,), -1, dtype=torch.int32, device=device)
        pairs.scatter_(0, places, order.to(torch.int32))
        firsts = torch.arange(0, outside, SIZE, device=device)
        found = torch.searchsorted(ends, firsts, right=True)
        owner = torch.where(found < experts, found, -1).to(torch.int32)
        return cls(pairs[:outside].view(blocks, SIZE), owner)

"""Deltas that are products of two thin matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ders_core.codecs import Parts
from ders_core.upcycle.delta import ProductDelta, stored, times


class LowRankDelta(ProductDelta):
    """Δ_i = L_i·R_i: `left` `[N, out, rank]`, zero at the start; `right` `[N, rank, in]`."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def matrix(self, expert: int) -> torch.Tensor:
        return self.left[expert] @ self.right[expert]

    def forward(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        pieces = zip(rows.split(list(counts)), self.left.unbind(), self.right.unbind(), strict=True)
        return torch.cat([times(times(piece, right), left) for piece, left, right in pieces])

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        return {
            "left": stored(self.left[expert], dtype),
            "right": stored(self.right[expert], dtype),
        }

"""`lowrank`: an expert differs by the product of two thin matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field as Parameter
from torch import nn

from ders_core.codecs import Codec, Parts
from ders_core.codecs.lowrank import LowRank
from ders_core.upcycle.delta import ProductDelta, stored, times
from ders_core.upcycle.fields import Field, Number
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal


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


@FORMS.register
class LowRankForm(Form):
    """DeRS-LM (arXiv 2503.01359 §3.2): Δ_i = L_i·R_i, L_i `[out, rank]` zero, R_i random."""

    name: ClassVar[str] = "lowrank"
    title: ClassVar[str] = "low rank (LM)"
    difference: ClassVar[str] = "by a low-rank product (DeRS-LM)"
    fields: ClassVar[dict[str, Field]] = {
        "rank": Number(
            "Rank",
            r"r: each delta is a product $A_i B_i$ of two thin matrices, with $r\cdot(d+d_h)$ "
            "trained values.",
            1,
            8192,
            1,
        )
    }

    rank: int = Parameter(ge=1, description="directions of each delta")

    @classmethod
    def usual(cls) -> Self:
        """The paper's values (DeRS, table 6)."""
        return cls(rank=4)

    @property
    def label(self) -> str:
        return f"LM {self.rank}"

    def values(self, shape: Shape) -> int:
        return min(self.rank, *shape) * sum(shape)

    def codec(self) -> LowRank:
        return LowRank(rank=self.rank)

    def delta(self, shape: Shape, seeds: Sequence[int], noise: float) -> LowRankDelta:
        out, width = shape
        rank = min(self.rank, *shape)
        right = torch.stack([normal((rank, width), seed) for seed in seeds]) / width**0.5
        left = torch.zeros(len(seeds), out, rank)
        for expert, seed in enumerate(seeds if noise else ()):
            left[expert] = noise * (width / rank) ** 0.5 * normal((out, rank), seed + 1)
        return LowRankDelta(left, right)

    @classmethod
    def reads(cls, codec: Codec) -> bool:
        return isinstance(codec, LowRank) and codec.factor_bits is None

    @classmethod
    def load(cls, saved: SavedSet) -> LowRankDelta:
        return LowRankDelta(saved.stack("left"), saved.stack("right"))

"""`lowrank`: an expert differs by the product of two thin matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field as Parameter

from ders_core.codecs import Codec
from ders_core.codecs.lowrank import LowRank
from ders_core.later import torch
from ders_core.upcycle.fields import Field, Number
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal

if TYPE_CHECKING:
    from ders_core.upcycle.lowrank_delta import LowRankDelta


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
        from ders_core.upcycle.lowrank_delta import LowRankDelta

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
        from ders_core.upcycle.lowrank_delta import LowRankDelta

        return LowRankDelta(saved.stack("left"), saved.stack("right"))

"""A form from outside of the package, in one file: each row of an expert's weight is shifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field as Parameter
from torch import nn

from ders_core.codecs import Codec, LowRank, Parts
from ders_core.upcycle.delta import ProductDelta, stored
from ders_core.upcycle.fields import Field, Number
from ders_core.upcycle.forms import Form, SavedSet, normal


class RowShiftDelta(ProductDelta):
    """Δ_i = scale · s_i·1ᵀ with `shift` s `[N, out]`."""

    def __init__(self, shift: torch.Tensor, scale: float, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)
        self.scale, self.width = scale, width

    def matrix(self, expert: int) -> torch.Tensor:
        return (self.scale * self.shift[expert]).unsqueeze(1).expand(-1, self.width)

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        left = (self.scale * self.shift[expert]).unsqueeze(1)
        return {"left": stored(left, dtype), "right": torch.ones(1, self.width, dtype=dtype)}


class RowShift(Form):
    """Stored with the codec of low-rank products: rank 1, with a row of ones."""

    name: ClassVar[str] = "rowshift"
    title: ClassVar[str] = "row shift (RS)"
    difference: ClassVar[str] = "by a shift of each row"
    fields: ClassVar[dict[str, Field]] = {
        "scale": Number("Scale", "Factor of every shift.", 0.1, 10.0, 0.1)
    }

    scale: float = Parameter(default=1.0, gt=0)

    @classmethod
    def usual(cls) -> Self:
        return cls(scale=2.0)

    @property
    def label(self) -> str:
        return f"RS {self.scale:g}"

    def values(self, shape: tuple[int, int]) -> int:
        return shape[0]

    def codec(self) -> Codec:
        return LowRank(rank=1)

    def delta(self, shape: tuple[int, int], seeds: Sequence[int], noise: float) -> RowShiftDelta:
        shift = torch.zeros(len(seeds), shape[0])
        for expert, seed in enumerate(seeds if noise else ()):
            shift[expert] = noise / self.scale * normal((shape[0],), seed)
        return RowShiftDelta(shift, self.scale, shape[1])

    @classmethod
    def reads(cls, codec: Codec) -> bool:
        return codec == LowRank(rank=1)

    @classmethod
    def load(cls, saved: SavedSet) -> RowShiftDelta:
        return RowShiftDelta(saved.stack("left").squeeze(2), 1.0, saved.shape[1])

"""`vanilla`: every expert is a copy of the dense weight, trained apart: the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from ders_core.codecs import Codec, Keep, Parts
from ders_core.errors import RecipeError
from ders_core.upcycle.delta import Delta, stored, times
from ders_core.upcycle.experts import ExpertLinear, Routes
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal


class SeparateLinear(ExpertLinear):
    """whole: `[N, out, in]`, the copies; bias: `[N, out]` or None."""

    base = None

    def __init__(self, whole: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.whole = nn.Parameter(whole)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.deltas = nn.ModuleList()

    def matrix(self, expert: int) -> torch.Tensor:
        return self.whole[expert]

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        return {"weight": stored(self.whole[expert], dtype)}

    def products(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        return self._product(tokens.index_select(0, routes.tokens), routes)

    def sums(self, rows: torch.Tensor, routes: Routes) -> tuple[None, torch.Tensor]:
        return None, self._product(rows, routes)

    def _product(self, rows: torch.Tensor, routes: Routes) -> torch.Tensor:
        pieces = zip(rows.split(list(routes.counts)), self.whole.unbind(), strict=True)
        return torch.cat([times(piece, weight) for piece, weight in pieces])


@FORMS.register
class Vanilla(Form):
    """Sparse upcycling (arXiv 2212.05055)."""

    name: ClassVar[str] = "vanilla"
    title: ClassVar[str] = "vanilla"
    difference: ClassVar[str] = "as a whole copy of its own (vanilla upcycling)"
    shares_base: ClassVar[bool] = False

    @classmethod
    def usual(cls) -> Self:
        return cls()

    @property
    def label(self) -> str:
        return "vanilla"

    def values(self, shape: Shape) -> int:
        return math.prod(shape)

    def codec(self) -> Codec:
        return Keep()

    def delta(self, shape: Shape, seeds: Sequence[int], noise: float) -> Delta:
        raise RecipeError("vanilla experts share no base on which there could be deltas")

    def start(
        self,
        weight: torch.Tensor,
        biases: torch.Tensor | None,
        seeds: Sequence[int],
        noise: float,
    ) -> SeparateLinear:
        copies = weight.expand(len(seeds), -1, -1).clone()
        for expert, seed in enumerate(seeds if noise else ()):
            copies[expert] += noise * normal(weight.shape, seed).to(weight.device)
        return SeparateLinear(copies, biases)

    @classmethod
    def reads(cls, codec: Codec) -> bool:
        return codec == Keep()

    @classmethod
    def load(cls, saved: SavedSet) -> Delta:
        raise RecipeError("vanilla experts share no base on which there could be deltas")

    @classmethod
    def load_linear(
        cls, saved: SavedSet, base: torch.Tensor | None, biases: torch.Tensor | None
    ) -> SeparateLinear:
        return SeparateLinear(saved.stack("weight"), biases)

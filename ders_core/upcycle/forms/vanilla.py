"""`vanilla`: every expert is a copy of the dense weight, trained apart: the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from ders_core.codecs import Codec, Keep
from ders_core.errors import RecipeError
from ders_core.later import torch
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal

if TYPE_CHECKING:
    from ders_core.upcycle.delta import Delta
    from ders_core.upcycle.separate import SeparateLinear


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
        from ders_core.upcycle.separate import SeparateLinear

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
        from ders_core.upcycle.separate import SeparateLinear

        return SeparateLinear(saved.stack("weight"), biases)

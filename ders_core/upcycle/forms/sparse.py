"""`sparse`: an expert differs at a few positions, drawn once or learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Parameter

from ders_core.codecs import Codec
from ders_core.codecs.coding.positions import decode_shortest
from ders_core.codecs.sparse import Sparse
from ders_core.later import torch
from ders_core.upcycle.fields import Field, Number, Toggle
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal

if TYPE_CHECKING:
    from ders_core.upcycle.sparse_delta import SparseDelta


class Renewal(BaseModel):
    """How the positions of a sparse form are learned: at each renewal, those of the smallest values
    are replaced by those of the largest gradients (RigL, arXiv 1911.11134)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Parameter(default=10, ge=1, description="step of the first renewal, of all")
    every: int = Parameter(default=20, ge=1, description="steps between two later ones")
    until: float = Parameter(default=0.5, gt=0, le=1, description="share of the training")
    share: float = Parameter(default=0.3, ge=0, le=1, description="of the positions, later")

    def share_at(self, step: int, steps: int) -> float:
        """The share of positions that is renewed after that many of `steps` steps; falls to 0 along
        a cosine, as RigL has it."""
        if step == self.first:
            return 1.0
        end = self.until * steps
        if step < self.first or step > end or (step - self.first) % self.every:
            return 0.0
        return self.share / 2 * (1 + math.cos(math.pi * step / end))


@FORMS.register
class SparseForm(Form):
    """DeRS-SM (arXiv 2503.01359 §3.2): values V_i = 0 at fixed positions, drawn once; with `renew`,
    at positions that are learned."""

    name: ClassVar[str] = "sparse"
    title: ClassVar[str] = "sparse (SM)"
    difference: ClassVar[str] = "by values at a few positions (DeRS-SM)"
    fields: ClassVar[dict[str, Field]] = {
        "drop_rate": Number(
            "Drop rate",
            "p: the share of entries that never differ from the base; of each expert "
            r"$(1-p)\cdot d\cdot d_h$ values are trained.",
            0.0,
            0.999999,
            0.01,
        ),
        "learned": Toggle(
            "Learned",
            "Positions of the smallest values are replaced by those of the largest gradients in "
            "training (RigL); otherwise they are drawn once, at random.",
        ),
    }

    drop_rate: float = Parameter(ge=0, lt=1, description="share of entries that never differ (p)")
    renew: Renewal | None = Parameter(default=None, description="learn the positions")

    @classmethod
    def usual(cls) -> Self:
        """The paper's values (DeRS, table 6)."""
        return cls(drop_rate=0.99)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return cls(drop_rate=0.9), cls(drop_rate=0.9, renew=Renewal())

    @property
    def label(self) -> str:
        learned = ", learned positions" if self.renew else ""
        return f"SM {self.drop_rate:g}{learned}"

    def values(self, shape: Shape) -> int:
        return self.codec().kept(shape)

    def index_bytes(self, shape: Shape) -> int:
        return 4 * self.values(shape)

    def codec(self) -> Sparse:
        if self.renew is None:
            return Sparse(drop_rate=self.drop_rate, rescale="none")
        return Sparse(drop_rate=self.drop_rate, method="magnitude")

    def delta(self, shape: Shape, seeds: Sequence[int], noise: float) -> SparseDelta:
        from ders_core.upcycle.sparse_delta import LearnedDelta, SparseDelta

        count = self.values(shape)
        codec = Sparse(drop_rate=self.drop_rate)
        positions = torch.stack([codec.drawn(shape, seed) for seed in seeds])
        values = torch.zeros(len(seeds), count)
        for expert, seed in enumerate(seeds if noise else ()):
            values[expert] = noise * normal((count,), seed + 1)
        if self.renew is None:
            return SparseDelta(values, positions.to(torch.int32), shape)
        return LearnedDelta(values, positions.to(torch.int32), shape, self.renew)

    @classmethod
    def reads(cls, codec: Codec) -> bool:
        """Values as they are, at positions that are drawn or stored."""
        if not isinstance(codec, Sparse):
            return False
        plain = codec.value_bits is None and codec.pattern is None and codec.method != "della"
        return plain and codec.rescale == ("none" if codec.method == "random" else None)

    @classmethod
    def load(cls, saved: SavedSet) -> SparseDelta:
        from ders_core.upcycle.sparse_delta import LearnedDelta, SparseDelta

        codec, size, values = saved.codec, math.prod(saved.shape), saved.stack("values")
        assert isinstance(codec, Sparse)
        count = values.shape[1]
        if codec.method == "random":
            drawn = [codec.drawn(saved.shape, seed) for seed in saved.seeds]
            return SparseDelta(values, torch.stack(drawn).to(torch.int32), saved.shape)
        kept = [decode_shortest(parts["positions"], size, count) for parts in saved.parts]
        return LearnedDelta(values, torch.stack(kept).to(torch.int32), saved.shape)

    def choices(self) -> dict[str, Any]:
        return {"drop_rate": self.drop_rate, "learned": self.renew is not None}

    @classmethod
    def choose(cls, choices: Mapping[str, Any], before: Form) -> Self:
        renew = before.renew if isinstance(before, SparseForm) else None
        return cls(
            drop_rate=choices["drop_rate"],
            renew=(renew or Renewal()) if choices["learned"] else None,
        )

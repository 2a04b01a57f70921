"""`sparse`: an expert differs at a few positions, drawn once or learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Parameter
from torch import nn

from ders_core.codecs import Codec, Parts
from ders_core.codecs.coding.positions import decode_shortest, encode_shortest
from ders_core.codecs.coding.prng import random_positions
from ders_core.codecs.sparse import Sparse
from ders_core.upcycle.delta import MatrixDelta, Moments, stored
from ders_core.upcycle.fields import Field, Number, Toggle
from ders_core.upcycle.forms.form import FORMS, Form, SavedSet, Shape, normal


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


class SparseDelta(MatrixDelta):
    """Δ_i with `values` `[N, count]` at flat `positions` int32 `[N, count]`, zero elsewhere. The
    positions are drawn from the experts' seeds, so that they are not stored."""

    positions: torch.Tensor

    def __init__(self, values: torch.Tensor, positions: torch.Tensor, shape: Shape) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("positions", positions)
        self.shape = shape

    def matrix(self, expert: int) -> torch.Tensor:
        zeros = self.values.new_zeros(math.prod(self.shape))
        flat = zeros.index_put((self.positions[expert].long(),), self.values[expert])
        return flat.view(self.shape)

    @torch.no_grad()
    def add_to(self, weight: torch.Tensor, expert: int) -> None:
        values = self.values[expert].detach().to(weight.dtype)
        weight.view(-1).index_add_(0, self.positions[expert], values)

    def gradient(self, expert: int, weight_gradient: torch.Tensor) -> torch.Tensor:
        return weight_gradient.view(-1).index_select(0, self.positions[expert])

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        return {"values": stored(self.values[expert], dtype)}


class LearnedDelta(SparseDelta):
    """Sparse deltas whose positions are stored; with a `renewal` they are learned as well."""

    def __init__(
        self,
        values: torch.Tensor,
        positions: torch.Tensor,
        shape: Shape,
        renewal: Renewal | None = None,
    ) -> None:
        super().__init__(values, positions, shape)
        self.renewal = renewal
        self.probe: int | None = None
        """How many positions are looked for in the next backward pass, of each expert."""
        self.candidates: dict[int, torch.Tensor] = {}
        """Expert -> the positions that it will have: where its largest values are, and where its
        gradient was largest elsewhere."""

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        positions = self.positions[expert].long().cpu()
        order = positions.argsort()
        return {
            "values": stored(self.values[expert].cpu()[order], dtype),
            "positions": encode_shortest(positions[order], math.prod(self.shape)),
        }

    def gradient(self, expert: int, weight_gradient: torch.Tensor) -> torch.Tensor:
        self._look(expert, weight_gradient)
        return super().gradient(expert, weight_gradient)

    def before_step(self, step: int, steps: int) -> None:
        if self.renewal is not None:
            share = self.renewal.share_at(step, steps)
            self.probe = round(share * self.values.shape[1]) or None

    def after_step(self, moments: Moments) -> None:
        if self.probe is not None:
            self.renew(moments(self.values))

    def _look(self, expert: int, gradient: torch.Tensor) -> None:
        """Note where the gradient `[out, in]` of an expert's whole weight is largest."""
        if self.probe is None:
            return
        largest = self.values.detach()[expert].abs().topk(self.values.shape[1] - self.probe)
        kept = self.positions[expert].index_select(0, largest.indices).long()
        scores = gradient.abs().flatten().index_fill_(0, kept, -1.0)
        self.candidates[expert] = torch.cat([kept, scores.topk(self.probe).indices]).sort().values

    @torch.no_grad()
    def renew(self, moments: Sequence[torch.Tensor]) -> None:
        """Take the positions that were looked for. moments: `[N, count]` that go with the values,
        such as an optimizer's. A new position has the value and moments 0; every process of a
        distributed training takes the first one's positions."""
        for expert in range(len(self.values)):
            old = self.positions[expert].long()
            new = self.candidates.get(expert, old)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(new, 0)
            flat = torch.zeros(math.prod(self.shape), dtype=self.values.dtype, device=new.device)
            for rows in (self.values.data, *moments):
                flat.zero_().index_copy_(0, old, rows[expert].to(flat.dtype))
                rows[expert] = flat.index_select(0, new)
            self.positions[expert] = new.to(torch.int32)
        self.candidates, self.probe = {}, None


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
        count = self.values(shape)
        positions = torch.stack([random_positions(math.prod(shape), count, seed) for seed in seeds])
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
        codec, size, values = saved.codec, math.prod(saved.shape), saved.stack("values")
        assert isinstance(codec, Sparse)
        count = values.shape[1]
        if codec.method == "random":
            drawn = [random_positions(size, count, seed) for seed in saved.seeds]
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

"""The forms that an expert's delta may have while it is trained, and what each costs.

A form knows the codec under which its deltas are stored afterwards; how it computes is in
`ders_core.upcycle.experts`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ders_core.codecs import Codec, Keep
from ders_core.codecs.lowrank import LowRank
from ders_core.codecs.sparse import Sparse

Shape = tuple[int, int]


class Form(BaseModel, ABC):
    """Base of all forms; a subclass declares its parameters as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares_base: ClassVar[bool] = True
    """Whether the experts stand on one W_shared."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The form with its strength, in a few words."""

    @abstractmethod
    def values(self, shape: Shape) -> int:
        """Trainable values of one expert's weight `[out, in]`, beside the base."""

    def index_bytes(self, shape: Shape) -> int:
        """Bytes of one expert's index in memory while it is trained."""
        return 0

    @abstractmethod
    def codec(self) -> Codec:
        """What its deltas are stored with."""


class Vanilla(Form):
    """Every expert is a copy of the dense weight, trained apart: the baseline."""

    form: Literal["vanilla"] = "vanilla"
    shares_base: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return "vanilla"

    def values(self, shape: Shape) -> int:
        return math.prod(shape)

    def codec(self) -> Codec:
        return Keep()


class Renewal(BaseModel):
    """How the positions of a sparse form are learned: at some steps, those of the smallest values
    give way to those of the largest gradients (RigL, arXiv 1911.11134)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(default=10, ge=1, description="step of the first renewal, of all positions")
    every: int = Field(default=20, ge=1, description="steps between two later ones")
    until: float = Field(default=0.5, gt=0, le=1, description="share of the training; none later")
    share: float = Field(default=0.3, ge=0, le=1, description="of the positions, at later ones")

    def share_at(self, step: int, steps: int) -> float:
        """The share of positions that is renewed after so many of `steps` steps; falls to 0 along
        a cosine, as RigL has it."""
        if step == self.first:
            return 1.0
        end = self.until * steps
        if step < self.first or step > end or (step - self.first) % self.every:
            return 0.0
        return self.share / 2 * (1 + math.cos(math.pi * step / end))


class SparseForm(Form):
    """DeRS-SM (arXiv 2503.01359 §3.2): values V_i = 0 at fixed positions, drawn once; with `renew`,
    at positions that are learned."""

    form: Literal["sparse"] = "sparse"

    drop_rate: float = Field(ge=0, lt=1, description="share of entries that never differ (p)")
    renew: Renewal | None = Field(default=None, description="learn the positions")

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

    @staticmethod
    def stores(codec: Sparse) -> bool:
        """Whether a codec is what a sparse form is stored with: values as they are."""
        plain = codec.value_bits is None and codec.pattern is None and codec.method != "della"
        return plain and codec.rescale == ("none" if codec.method == "random" else None)


class LowRankForm(Form):
    """DeRS-LM (arXiv 2503.01359 §3.2): Δ_i = L_i·R_i, L_i `[out, rank]` zero, R_i random."""

    form: Literal["lowrank"] = "lowrank"

    rank: int = Field(ge=1, description="directions of each delta")

    @property
    def label(self) -> str:
        return f"LM {self.rank}"

    def values(self, shape: Shape) -> int:
        return min(self.rank, *shape) * sum(shape)

    def codec(self) -> LowRank:
        return LowRank(rank=self.rank)


AnyForm = Annotated[Vanilla | SparseForm | LowRankForm, Field(discriminator="form")]

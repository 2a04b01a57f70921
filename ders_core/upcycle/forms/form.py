"""What a form is: how the experts of one projection differ from each other; and all known forms.

A form is one file of this package with a class that `FORMS.register` decorates. It says how the
experts are trained, how they start, with which codec they are stored and how they are read back,
what they cost, and what a person sets on the Upcycle page. The torch modules that it trains are in
a file beside this package, imported where they are made: the page needs none of them.
`ders_core.upcycle.testing` has the checks that every form must pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from ders_core.codecs import Codec, Parts
from ders_core.errors import RecipeError
from ders_core.later import torch
from ders_core.registry import Registry
from ders_core.upcycle.fields import Field

if TYPE_CHECKING:
    from ders_core.upcycle.delta import Delta
    from ders_core.upcycle.experts import ExpertLinear

Shape = tuple[int, int]
"""Of one expert's weight: `[out, in]`."""


@dataclass(frozen=True)
class SavedSet:
    """One set of an upcycled checkpoint's deltas, of one projection.

    codec: with which it is stored. parts, seeds: of each expert. dtype: to hold it in.
    """

    codec: Codec
    parts: Sequence[Parts]
    shape: Shape
    seeds: Sequence[int]
    dtype: torch.dtype

    def stack(self, part: str) -> torch.Tensor:
        """A part of all experts `[N, ...]`, as `dtype`."""
        return torch.stack([parts[part] for parts in self.parts]).to(self.dtype)


class Form(BaseModel, ABC):
    """Base of all forms; a subclass declares its parameters as pydantic fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word in a configuration (`form: lowrank`)."""
    title: ClassVar[str]
    """As the page offers it."""
    difference: ClassVar[str]
    """How an expert differs from the shared weight, such as "by a low-rank product"."""
    fields: ClassVar[Mapping[str, Field]] = {}
    """Name -> what a person sets on the page. Forms that use the same name share its value."""
    shares_base: ClassVar[bool] = True
    """Whether the experts share one W_shared."""

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"form": self.name, **handler(self)}

    @classmethod
    @abstractmethod
    def usual(cls) -> Self:
        """With the parameters that the page begins with."""

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """What the checks of `ders_core.upcycle.testing` try: one for each way it computes."""
        return (cls.usual(),)

    @property
    @abstractmethod
    def label(self) -> str:
        """The form with its strength, in a few words."""

    @abstractmethod
    def values(self, shape: Shape) -> int:
        """Trained values of one expert's weight, besides the base and biases."""

    def index_bytes(self, shape: Shape) -> int:
        """Bytes of one expert's index in memory while it is trained."""
        return 0

    @abstractmethod
    def codec(self) -> Codec:
        """What an expert is stored with."""

    @abstractmethod
    def delta(self, shape: Shape, seeds: Sequence[int], noise: float) -> Delta:
        """A new set of deltas, float32 on the CPU: zero, or random with standard deviation `noise`
        of an entry that may differ. seeds: one for each expert; what is drawn depends on nothing
        else. Raises RecipeError if the form shares no base."""

    def start(
        self,
        weight: torch.Tensor,
        biases: torch.Tensor | None,
        seeds: Sequence[int],
        noise: float,
    ) -> ExpertLinear:
        """One projection as its training starts; without noise every expert is the dense weight.

        weight: `[out, in]` float32; biases: `[N, out]`; seeds, noise: as for `delta`.
        """
        from ders_core.upcycle.shared import SharedLinear

        shape = (weight.shape[0], weight.shape[1])
        return SharedLinear(
            weight.clone(), biases, [self.delta(shape, seeds, noise).to(weight.device)]
        )

    @classmethod
    @abstractmethod
    def reads(cls, codec: Codec) -> bool:
        """Whether `load` knows what this codec stored."""

    @classmethod
    @abstractmethod
    def load(cls, saved: SavedSet) -> Delta:
        """The inverse of `Delta.parts`. saved: with a codec that the form reads."""

    @classmethod
    def load_linear(
        cls, saved: SavedSet, base: torch.Tensor | None, biases: torch.Tensor | None
    ) -> ExpertLinear:
        """One projection on its first set of deltas. base, biases: as they are held."""
        from ders_core.upcycle.shared import SharedLinear

        assert base is not None
        return SharedLinear(base, biases, [cls.load(saved)])

    def choices(self) -> dict[str, Any]:
        """The page's value for each of `fields`."""
        return {name: getattr(self, name) for name in self.fields}

    @classmethod
    def choose(cls, choices: Mapping[str, Any], before: Form) -> Self:
        """The inverse of `choices`. choices: values of `fields`, among others; before: the form
        that was chosen until now, of any class, for what the page does not show. Raises pydantic's
        ValidationError."""
        return cls.model_validate({name: choices[name] for name in cls.fields})


FORMS: Registry[Form] = Registry("form", "ders_core.upcycle.forms", RecipeError)


def make_form(fields: Mapping[str, Any]) -> Form:
    """A form from `{"form": name, **parameters}`. Raises RecipeError for an unknown name, and
    pydantic's ValidationError for wrong parameters."""
    parameters = {key: value for key, value in fields.items() if key != "form"}
    return FORMS.find(fields.get("form")).model_validate(parameters)


def form_that_reads(codec: Codec) -> type[Form] | None:
    """The first form by name that can compute with what a codec stored."""
    return next((form for form in FORMS.values() if form.reads(codec)), None)


def normal(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal numbers, float32, drawn on the CPU whatever the device is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

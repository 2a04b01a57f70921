"""What the manifest says of each coded part of a model: a group of experts, or another tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ders_core.checkpoint.axes import EXPERT, IN, MATRIX, OUT, PART, Axes
from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.checkpoint.others import STACKED, sizes_of
from ders_core.codecs import Keep, make_codec
from ders_core.codecs.coding.prng import base_seed, expert_seed, tensor_seed
from ders_core.codecs.group import BaseForm, GroupCodec
from ders_core.errors import CheckpointError


@dataclass(frozen=True)
class Place:
    """Where the original holds one matrix of a stack, or its bias.

    tensor, shape: the tensor, and its shape there. number: of the matrix in the stack.
    """

    tensor: str
    shape: tuple[int, ...]
    number: int
    slot: Slot
    bias: bool


class PackedStack(Protocol):
    """Matrices of one shape that are coded as one: `PackedGroup` or `PackedTensor`."""

    @property
    def prefix(self) -> str:
        """Its parts are the tensors `<prefix>.<part>`."""

    @property
    def title(self) -> str:
        """What it is, as messages name it."""

    @property
    def stacked(self) -> tuple[int, int, int]:
        """(matrices, out, in)"""

    @property
    def dtype(self) -> str: ...

    @property
    def lengths(self) -> Mapping[str, tuple[int, ...]]:
        """Of parts whose length depends on the data: the length for each matrix that has it."""

    @property
    def stored(self) -> str | None:
        """The scheme of codes in which the original holds the matrices."""

    @property
    def has_biases(self) -> bool: ...

    @property
    def is_consistent(self) -> bool:
        """Whether its fields can belong to one stack."""

    def group_codec(self) -> GroupCodec:
        """The matrices' codecs. Raises CodecError if the manifest names an unknown one."""

    def base_form(self) -> BaseForm | None:
        """How the bases lie in the files; None without a base. Raises CodecError likewise."""

    def base_of(self, number: int, /) -> int:
        """The number of a matrix's base."""

    def seed(self, recipe_seed: int, number: int, /) -> int:
        """Of one matrix."""

    def base_seed(self, recipe_seed: int, number: int, /) -> int:
        """Of one base."""

    def places(self) -> Iterator[Place]:
        """Where the original holds each matrix and bias. Raises CheckpointError if the entry
        contradicts itself."""


class PackedSource(BaseModel):
    """Where one expert's weight or bias was stored: a tensor, its axes, and which part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    axes: str = str(MATRIX)
    """See `ders_core.checkpoint.axes`."""
    experts: int = Field(default=1, ge=1, lt=1 << 32)
    """How many experts the tensor holds; `expert` is which of them this is."""
    expert: int = Field(default=0, ge=0)
    parts: int = Field(default=1, ge=1, le=3)
    """How many projections the tensor holds; `part` is which of them this is."""
    part: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        """A name alone is a tensor that is one expert's matrix."""
        return {"tensor": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check(self) -> PackedSource:
        Axes.parse(self.axes)
        if self.expert >= self.experts or self.part >= self.parts:
            raise ValueError(
                f"{self.tensor!r} has {self.experts} experts and {self.parts} parts, so it has no "
                f"expert {self.expert}, part {self.part}"
            )
        return self

    @model_serializer(mode="wrap")
    def _shorten(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        changed = {
            key: value
            for key, value in fields.items()
            if value != type(self).model_fields[key].default
        }
        return self.tensor if list(changed) == ["tensor"] else changed

    @classmethod
    def of(cls, matrix: Matrix) -> PackedSource:
        """The place of a matrix of the source checkpoint."""
        slot = matrix.slot
        return cls(
            tensor=matrix.info.name,
            axes=str(slot.axes),
            experts=slot.sizes.get(EXPERT, 1),
            expert=slot.expert,
            parts=slot.sizes.get(PART, 1),
            part=slot.part,
        )

    def slot(self, shape: tuple[int, int]) -> Slot:
        """The same place again, for a matrix `[out, in]`, or a bias `[out, 1]`."""
        sizes = {EXPERT: self.experts, PART: self.parts, OUT: shape[0], IN: shape[1]}
        axes = Axes.parse(self.axes)
        present = {axis: size for axis, size in sizes.items() if axis in axes.order}
        return Slot(axes, present, self.expert, self.part)


class PackedGroup(BaseModel):
    """One packed group: where its parts are, how to read them, and where they came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0, lt=1 << 32)
    projection: str
    prefix: str
    """The parts are the tensors `<prefix>.<part>`; the base is `<prefix>.base`."""
    codec: dict[str, Any] | tuple[dict[str, Any], ...]
    """With the codec `keep` there is no base, and `<prefix>.weight` holds the weights. Several
    codecs have the parts `<prefix>.<number>.<part>`."""
    uses: tuple[int, ...] | None = None
    """With several codecs, the number of each expert's codec."""
    lengths: dict[str, tuple[int, ...]] = {}
    """Parts whose length depends on the data: the length for each expert that has the part."""
    shape: tuple[int, int, int]
    """(experts, out, in)"""
    dtype: str
    experts: tuple[PackedSource, ...]
    """Where each expert's weight was stored."""
    biases: tuple[PackedSource, ...] = ()
    """Where each expert's bias was stored; `<prefix>.bias` `[experts, out]` holds the values."""
    stored: str | None = None
    """The scheme of codes in which the source holds the weights; its scales are carried over."""
    bases: tuple[int, ...] | None = None
    """With several bases, `<prefix>.base` is `[bases, out, in]`; this is the number of each
    expert's base."""
    base_codec: dict[str, Any] | None = None
    """The codec of the bases themselves, whose parts `<prefix>.base.<part>` are stacked over them;
    None where `<prefix>.base` holds them as they are."""
    base_lengths: dict[str, tuple[int, ...]] = {}
    """As `lengths`, of the bases' parts."""
    without_base: bool = False
    """Whether the codecs hold the weights themselves: the base is zero, and no tensor holds it."""

    @property
    def title(self) -> str:
        return f"layer {self.layer}, {self.projection}"

    @property
    def stacked(self) -> tuple[int, int, int]:
        return self.shape

    @property
    def has_biases(self) -> bool:
        return bool(self.biases)

    def group_codec(self) -> GroupCodec:
        return GroupCodec.load(self.codec, self.uses, self.shape[0])

    def base_form(self) -> BaseForm | None:
        if self.without_base:
            return None
        codec = Keep() if self.base_codec is None else make_codec(self.base_codec)
        count = max(self.bases) + 1 if self.bases else None
        return BaseForm(count, codec, self.base_lengths)

    @property
    def base_count(self) -> int:
        """How many bases there are; 0 without, and where the weights are kept."""
        form = self.base_form()
        return 0 if form is None or self.group_codec().keeps else form.count or 1

    def base_of(self, expert: int) -> int:
        return self.bases[expert] if self.bases else 0

    def seed(self, recipe_seed: int, expert: int) -> int:
        return expert_seed(recipe_seed, self.layer, self.projection, expert)

    def base_seed(self, recipe_seed: int, base: int) -> int:
        return base_seed(recipe_seed, self.layer, self.projection, base)

    def places(self) -> Iterator[Place]:
        _, out, width = self.shape
        for bias, sources in ((False, self.experts), (True, self.biases)):
            for expert, source in enumerate(sources):
                slot = source.slot((out, 1 if bias else width))
                if slot.axes.is_bias != bias:
                    raise CheckpointError(f"{source.tensor!r} contradicts itself")
                yield Place(source.tensor, slot.axes.shape(slot.sizes), expert, slot, bias)

    @property
    def is_consistent(self) -> bool:
        count = self.shape[0]
        has_base_fields = bool(self.bases or self.base_codec or self.base_lengths)
        return (
            self.projection in PROJECTIONS
            and min(self.shape) >= 1
            and len(self.experts) == count
            and len(self.biases) in (0, count)
            and (self.bases is None or _numbers_bases(self.bases, count))
            and not (self.without_base and has_base_fields)
        )


class PackedTensor(BaseModel):
    """A tensor outside the experts that is coded: without a base, as one matrix or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """In the original. The parts are the tensors `<name>.ders.<part>`."""
    codec: dict[str, Any]
    lengths: dict[str, tuple[int, ...]] = {}
    """As of a group, for each piece."""
    shape: tuple[int, ...]
    """In the original. The last dimension is `in`, all others are rows."""
    pieces: int = Field(ge=1, lt=1 << 16)
    """How many matrices of as many rows it is cut into, one after another."""
    dtype: str

    @property
    def title(self) -> str:
        return repr(self.name)

    @property
    def prefix(self) -> str:
        return f"{self.name}.ders"

    @property
    def stacked(self) -> tuple[int, int, int]:
        sizes = sizes_of(self.shape, self.pieces)
        return sizes[EXPERT], sizes[OUT], sizes[IN]

    @property
    def stored(self) -> None:
        """A tensor of codes is carried."""

    @property
    def has_biases(self) -> bool:
        return False

    def group_codec(self) -> GroupCodec:
        return GroupCodec.same(make_codec(self.codec), self.pieces)

    def base_form(self) -> None:
        """It has no base."""

    def base_of(self, piece: int) -> int:
        return 0

    def seed(self, recipe_seed: int, piece: int) -> int:
        return tensor_seed(recipe_seed, self.name, piece)

    def base_seed(self, recipe_seed: int, base: int) -> int:
        raise AssertionError(f"{self.title} has no base")

    def places(self) -> Iterator[Place]:
        sizes = sizes_of(self.shape, self.pieces)
        for piece in range(self.pieces):
            yield Place(self.name, self.shape, piece, Slot(STACKED, sizes, piece), bias=False)

    @property
    def is_consistent(self) -> bool:
        return bool(self.shape) and math.prod(self.stacked) == math.prod(self.shape) > 0


def _numbers_bases(bases: tuple[int, ...], experts: int) -> bool:
    """Whether every expert has a base, and every base an expert."""
    return len(bases) == experts and set(bases) == set(range(max(bases) + 1))

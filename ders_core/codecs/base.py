"""What a delta codec is, and the registry of all of them.

A codec is a frozen set of parameters with two pure functions, `encode` and `decode`, between one
expert's delta and a flat dict of tensors. It says beforehand which tensors it will write. The
parameters travel in recipes and in the manifest; nothing else is needed to decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ders_core.checkpoint.header import TensorSpec
from ders_core.errors import CodecError

Parts = dict[str, torch.Tensor]
"""What one expert's delta becomes; in the file each part is stacked over the experts."""


@dataclass(frozen=True)
class EncodeContext:
    """What a codec may know beside the delta.

    dtype: the checkpoint's storage dtype, in which values are kept.
    seed: of this expert's weight; the same at decoding.
    """

    dtype: torch.dtype
    seed: int


class DeltaCodec(BaseModel, ABC):
    """Base of all codecs; a subclass declares its parameters as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word in recipes, manifests and on the command line."""
    summary: ClassVar[str]
    """One sentence for a person who chooses."""
    source: ClassVar[str]
    """Where the form comes from."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The codec with its strength, in a few words."""

    @property
    def exact(self) -> bool:
        """Whether `parts` is exact before the data are seen; otherwise it is an upper bound."""
        return True

    @abstractmethod
    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        """The tensors that one expert's delta `[out, in]` will take."""

    def fit(self, deltas: Iterable[torch.Tensor]) -> DeltaCodec:
        """A codec with every choice made that depends on the group's deltas (`[out, in]` fp32)."""
        return self

    @abstractmethod
    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        """delta: `[out, in]` float32, finite. Raises CodecError if it cannot be represented."""

    @abstractmethod
    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        """The delta `[out, in]` float32, on the device of the parts."""

    def dump(self) -> dict[str, Any]:
        """The codec as it stands in a recipe."""
        return {"codec": self.name, **self.model_dump(exclude_none=True)}


CODECS: dict[str, type[DeltaCodec]] = {}

C = TypeVar("C", bound=type[DeltaCodec])


def register(codec: C) -> C:
    """Class decorator: make a codec known by its name."""
    CODECS[codec.name] = codec
    return codec


def codec_class(name: object) -> type[DeltaCodec]:
    """The codec of that name. Raises CodecError that lists the known ones."""
    if not isinstance(name, str) or name not in CODECS:
        raise CodecError(f"unknown codec {name!r}; known are {', '.join(sorted(CODECS))}")
    return CODECS[name]


def make_codec(fields: Mapping[str, Any]) -> DeltaCodec:
    """A codec from `{"codec": name, **parameters}`. Raises CodecError for anything unknown."""
    parameters = {key: value for key, value in fields.items() if key != "codec"}
    cls = codec_class(fields.get("codec"))
    try:
        return cls.model_validate(parameters)
    except ValidationError as error:
        raise CodecError(explain(error, cls)) from error


def gravest(error: ValidationError) -> ErrorDetails:
    """The finding to tell first: a misspelt key rather than the one it then leaves missing."""
    found = error.errors()
    return next((item for item in found if item["type"] == "extra_forbidden"), found[0])


def explain(error: ValidationError, cls: type[DeltaCodec]) -> str:
    """One sentence for the gravest thing that pydantic found wrong with a codec's parameters."""
    first = gravest(error)
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(cls.model_fields) or "none"
        return f"codec {cls.name!r} has no parameter {key!r}; it has {known}"
    if first["type"] == "missing":
        return f"codec {cls.name!r} needs the parameter {key!r}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if not key else f" (given: {first['input']!r})"
    return f"codec {cls.name!r}{', ' + key if key else ''}: {message}{given}"

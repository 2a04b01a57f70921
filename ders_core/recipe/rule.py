"""A rule of a recipe: a codec, and the experts that get it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ders_core.checkpoint.layouts import PROJECTIONS, Projection
from ders_core.codecs import Codec, make_codec
from ders_core.errors import CodecError, gravest
from ders_core.recipe.numbers import parse_numbers

SELECTORS = ("layers", "projections", "experts")


class Rule(BaseModel):
    """A selector and the codec for what it selects, with the codec's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    layers: str = Field(default="all", description="'all', or layers and ranges such as '0-3,7'")
    projections: tuple[Projection, ...] = ("gate", "up", "down")
    experts: str = Field(default="all", description="'all', or experts and ranges such as '0-3,7'")
    codec: Codec

    @model_validator(mode="before")
    @classmethod
    def _gather_codec(cls, data: Any) -> Any:
        """Fold the codec's flat parameters into the codec."""
        if not isinstance(data, dict) or isinstance(data.get("codec"), Codec):
            return data
        selectors = {key: data[key] for key in SELECTORS if key in data}
        parameters = {key: value for key, value in data.items() if key not in selectors}
        if "codec" not in parameters:
            raise ValueError("a rule needs a codec")
        try:
            return selectors | {"codec": make_codec(parameters)}
        except CodecError as error:
            cause = error.__cause__
            loc = gravest(cause).path if isinstance(cause, ValidationError) else ("codec",)
            details = {"problem": str(error), "loc": loc}
            raise PydanticCustomError("codec", "{problem}", details) from error

    @field_validator("layers", "experts", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        """`3` and `[0, 1, 2]` are as good as `"3"` and `"0-2"`."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, list):
            return ",".join(str(item) for item in value)
        return value

    @field_validator("layers", "experts")
    @classmethod
    def _check_numbers(cls, value: str) -> str:
        parse_numbers(value)
        return value

    @field_validator("projections", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.layers != "all":
            fields["layers"] = self.layers
        if self.projections != PROJECTIONS:
            fields["projections"] = list(self.projections)
        if self.experts != "all":
            fields["experts"] = self.experts
        return fields | self.codec.dump()

    def selects(self, layer: int, projection: str, expert: int) -> bool:
        """Whether the rule gives its codec to this expert's weight."""
        return self.is_of(layer, projection) and _contains(self.experts, expert)

    def is_of(self, layer: int, projection: str) -> bool:
        """Whether the rule is about experts of this group."""
        return projection in self.projections and _contains(self.layers, layer)

    @property
    def is_of_all_experts(self) -> bool:
        """Whether it is about all experts of its groups."""
        return parse_numbers(self.experts) is None


@lru_cache(maxsize=4096)
def _ranges(numbers: str) -> tuple[range, ...] | None:
    """As `parse_numbers`: every rule is asked about every expert of a model."""
    ranges = parse_numbers(numbers)
    return None if ranges is None else tuple(ranges)


def _contains(numbers: str, number: int) -> bool:
    ranges = _ranges(numbers)
    return ranges is None or any(number in span for span in ranges)

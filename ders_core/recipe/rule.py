"""The rules of a recipe: a codec, and the experts, bases or other tensors that get it."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

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
from ders_core.checkpoint.others import KINDS, Kind, OtherTensor
from ders_core.codecs import Codec, make_codec
from ders_core.errors import CodecError, gravest
from ders_core.recipe.name_patterns import NamePatterns
from ders_core.recipe.numbers import parse_numbers

USUAL_KINDS = tuple(kind for kind in KINDS if kind not in ("router", "norm", "vector"))
"""What a rule for other tensors is about unless it says more: the others are small, and a model is
sensitive to them."""

LONGEST_NAME, MOST_NAMES = 400, 64
"""Characters of a pattern for names, and patterns of a rule."""


class CodecRule(BaseModel):
    """A codec with its parameters, for what a subclass's fields select."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    layers: str = Field(default="all", description="'all', or layers and ranges such as '0-3,7'")
    codec: Codec

    @classmethod
    def _selectors(cls) -> list[str]:
        return [field for field in cls.model_fields if field != "codec"]

    @model_validator(mode="before")
    @classmethod
    def _gather_codec(cls, data: Any) -> Any:
        """Fold the codec's flat parameters into the codec."""
        if not isinstance(data, dict) or isinstance(data.get("codec"), Codec):
            return data
        selectors = {key: data[key] for key in cls._selectors() if key in data}
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

    @field_validator("layers", "experts", mode="before", check_fields=False)
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        """`3` and `[0, 1, 2]` are as good as `"3"` and `"0-2"`."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, list):
            return ",".join(str(item) for item in value)
        return value

    @field_validator("layers", "experts", check_fields=False)
    @classmethod
    def _check_numbers(cls, value: str) -> str:
        parse_numbers(value)
        return value

    @field_validator("projections", "kinds", "names", mode="before", check_fields=False)
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        changed = {name: getattr(self, name) for name in self._selectors()}
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in changed.items()
            if value != fields[name].default
        }
        return plain | self.codec.dump()


class GroupRule(CodecRule):
    """A rule for some layers and projections."""

    projections: tuple[Projection, ...] = ("gate", "up", "down")

    def is_of(self, layer: int, projection: str) -> bool:
        """Whether the rule is about this group."""
        return projection in self.projections and _contains(self.layers, layer)

    @property
    def is_of_all(self) -> bool:
        """Whether it is about all that such rules can be about, whatever those before it say."""
        return parse_numbers(self.layers) is None and set(PROJECTIONS) <= set(self.projections)


class BaseRule(GroupRule):
    """The codec of the bases themselves."""


class Rule(GroupRule):
    """The codec of the deltas of the experts that it selects."""

    experts: str = Field(default="all", description="'all', or experts and ranges such as '0-3,7'")

    def selects(self, layer: int, projection: str, expert: int) -> bool:
        """Whether the rule gives its codec to this expert's weight."""
        return self.is_of(layer, projection) and _contains(self.experts, expert)

    @property
    def is_of_all(self) -> bool:
        return super().is_of_all and self.is_of_all_experts

    @property
    def is_of_all_experts(self) -> bool:
        """Whether it is about all experts of its groups."""
        return parse_numbers(self.experts) is None


class OtherRule(CodecRule):
    """The codec of tensors outside the experts, by what they are and what they are called.

    Routers, norms and vectors stay, unless `kinds` or `names` are given.
    """

    kinds: tuple[Kind, ...] = ()
    names: tuple[Annotated[str, Field(max_length=LONGEST_NAME)], ...] = Field(
        default=(), max_length=MOST_NAMES
    )
    """Of tensors; `*` stands for any characters."""

    def is_of_kind(self, kind: Kind) -> bool:
        """Whether it is about all tensors of this kind, and nothing else."""
        return self.kinds == (kind,) and not self.names and parse_numbers(self.layers) is None

    def may_select(self, kind: Kind) -> bool:
        """Whether it can be about tensors of this kind."""
        return kind in (self.kinds or (KINDS if self.names else USUAL_KINDS))

    def selects(self, tensor: OtherTensor) -> bool:
        """Whether the rule gives its codec to this tensor."""
        if not self.may_select(tensor.kind):
            return False
        if tensor.layer is None:
            is_of_layer = _ranges(self.layers) is None
        else:
            is_of_layer = _contains(self.layers, tensor.layer)
        return is_of_layer and (not self.names or _patterns(self.names).fit(tensor.name))


@lru_cache(maxsize=4096)
def _patterns(names: tuple[str, ...]) -> NamePatterns:
    """Of a rule, which is asked about every tensor outside the experts."""
    return NamePatterns(names)


@lru_cache(maxsize=4096)
def _ranges(numbers: str) -> tuple[range, ...] | None:
    """As `parse_numbers`: every rule is asked about every expert of a model."""
    ranges = parse_numbers(numbers)
    return None if ranges is None else tuple(ranges)


def _contains(numbers: str, number: int) -> bool:
    ranges = _ranges(numbers)
    return ranges is None or any(number in span for span in ranges)

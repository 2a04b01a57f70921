"""Recipes: which codec, how strong, for which experts. Pydantic in memory, YAML on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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
from ders_core.codecs import Codec, Keep, make_codec
from ders_core.codecs.group import GroupCodec
from ders_core.errors import CodecError, RecipeError, gravest
from ders_core.recipe.numbers import parse_numbers
from ders_core.recipe.yaml_text import line_of, load_mapping

SELECTORS = ("layers", "projections", "experts")
ROUTED_NEEDS = "base: routed needs a calibration, which tells how experts are chosen"


class Rule(BaseModel):
    """A selector and the codec for what it selects; the codec's parameters stand beside it."""

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
        own = {key: data[key] for key in SELECTORS if key in data}
        rest = {key: value for key, value in data.items() if key not in own}
        if "codec" not in rest:
            raise ValueError("a rule needs a codec")
        try:
            return own | {"codec": make_codec(rest)}
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
        return (
            projection in self.projections
            and _inside(self.layers, layer)
            and _inside(self.experts, expert)
        )


def _inside(numbers: str, number: int) -> bool:
    ranges = parse_numbers(numbers)
    return ranges is None or any(number in own for own in ranges)


class DenseBase(BaseModel):
    """The dense parent's directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: Path


class ClusteredBase(BaseModel):
    """Several bases: experts that share a start are grouped, each group around its own mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: Literal["auto"] | Annotated[int, Field(ge=2)]
    """How many bases each group has; `auto`: as many as pay (`ders_core.decompose.clusters`)."""


class Recipe(BaseModel):
    """An ordered list of rules. Where several select a group, the last one counts; a group that no
    rule selects is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    base: Literal["mean", "median", "routed", "auto"] | DenseBase | ClusteredBase = "mean"
    """What deltas are taken against: the experts' mean; their elementwise median; their mean
    weighted by how often each is chosen, which a calibration tells; the one of these with the least
    error under the group's codec (`auto`); a dense parent; or several means."""
    calibration: Path | None = None
    """What `ders calibrate` wrote for the checkpoint: second moments of inputs, for codecs that use
    them, and how often experts are chosen."""
    extended: bool = False
    """Treat a shared (always-on) expert as one more expert of the same base, where its shape allows
    (extended DeRS)."""
    rules: tuple[Rule, ...] = ()

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError(f"{value!r} must be one line of printable characters")
        return value

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As a person would write it: what is seldom used is left out where it is not."""
        fields: dict[str, Any] = handler(self)
        return {
            key: value
            for key, value in fields.items()
            if value or key not in ("extended", "calibration")
        }

    @model_validator(mode="after")
    def _check_calibration(self) -> Recipe:
        if self.base == "routed" and self.calibration is None:
            raise PydanticCustomError("base", ROUTED_NEEDS, {"loc": ("base",)})
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """Other files that it reads."""
        dense = self.base.dense if isinstance(self.base, DenseBase) else None
        return tuple(path for path in (dense, self.calibration) if path is not None)

    @property
    def clusters(self) -> int | Literal["auto"] | None:
        """How many bases each group has; None for one that is not stacked."""
        return self.base.clusters if isinstance(self.base, ClusteredBase) else None

    def codec(self, layer: int, projection: str, expert: int = 0) -> Codec:
        """The codec of one expert's weight."""
        for rule in reversed(self.rules):
            if rule.selects(layer, projection, expert):
                return rule.codec
        return Keep()

    def group_codec(self, layer: int, projection: str, experts: int) -> GroupCodec:
        """The codecs of a group of so many experts; a shared one counts as the last."""
        return GroupCodec.of([self.codec(layer, projection, expert) for expert in range(experts)])

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Raises RecipeError, with the line where it can be told."""
        data = load_mapping(text, "recipe", "at least a name")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _recipe_error(error, text) from error

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _recipe_error(error: ValidationError, text: str) -> RecipeError:
    fault = gravest(error)
    if fault.path[:1] == ("base",):
        message = (
            "base must be mean, median, routed or auto, {dense: PATH} with the dense model's "
            "directory, or {clusters: auto} or a number of bases from 2 on"
        )
    else:
        message = fault.sentence(known=Recipe.model_fields)
    return RecipeError(message, line_of(text, fault.path + fault.inner))

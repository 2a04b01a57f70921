"""Recipes: which codec, how strong, for which experts. Pydantic in memory, YAML on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ders_core.checkpoint.others import OtherTensor
from ders_core.codecs import Codec, Keep
from ders_core.codecs.codec import NEEDS, Need
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.base import Base, make_base
from ders_core.decompose.bases.mean import MeanBase
from ders_core.errors import RecipeError, gravest, sentence_of
from ders_core.recipe.budget import Budget
from ders_core.recipe.rule import BaseRule, CodecRule, GroupRule, OtherRule, Rule
from ders_core.recipe.yaml_text import line_of, load_mapping

RARE = ("extended", "base_error", "calibration", "budget", "base_codec", "others")
"""Fields that are written only where they say something."""


def _base(value: Any) -> Base:
    try:
        return make_base(value)
    except RecipeError as error:
        raise PydanticCustomError("base", "{problem}", {"problem": str(error)}) from error


def _rules(value: Any) -> Any:
    """A codec's word, or a codec with its parameters, is one rule for all."""
    if isinstance(value, str):
        value = {"codec": value}
    return [value] if isinstance(value, dict) else value


class Recipe(BaseModel):
    """An ordered list of rules. Where several select a group, the last one counts; a group that no
    rule selects is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1, 2] = 1
    """2 for a recipe with a budget, or in which codecs decide about `base_error`."""
    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**63)
    base: Annotated[Base, BeforeValidator(_base), PlainSerializer(Base.dump)] = MeanBase()
    """What deltas are taken against: a word or a mapping, as `ders_core.decompose.bases` has it."""
    calibration: Path | None = None
    """What `ders calibrate` wrote for the checkpoint: second moments of inputs, for codecs that use
    them, and how often experts are chosen."""
    extended: bool = False
    """Treat a shared (always-on) expert as one more expert of the same base, where its shape allows
    (extended DeRS)."""
    rules: tuple[Rule, ...] = ()
    base_codec: Annotated[tuple[BaseRule, ...], BeforeValidator(_rules)] = ()
    """How the bases themselves are coded: a codec, or rules by layer and projection. A base that no
    rule selects is stored as it is."""
    base_error: Literal["absorbed", "shared"] | None = None
    """What becomes of a coded base's error. absorbed: deltas are taken against what
    it gives back, and hold it. shared: against the base as it was, and all experts have it; for
    deltas below their steps, as those of a bit that are rounded by chance. None: shared with a
    budget, and in version 2 where `suits_shared_error`; else absorbed (`benchmarks/base_errors.py`
    compares them)."""
    budget: Budget | None = None
    """How large the whole may get, or what it may cost: one knob codes all matrices then, and the
    rules are exceptions (`ders_core.pipeline.budget`)."""
    others: Annotated[tuple[OtherRule, ...], BeforeValidator(_rules)] = ()
    """How tensors outside the experts are coded: a codec, or rules. A tensor that no rule selects
    is stored as it is."""

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError(f"{value!r} must be one line of printable characters")
        return value

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit rarely used fields that have their default."""
        fields: dict[str, Any] = handler(self)
        usual = type(self).model_fields
        return {
            key: value
            for key, value in fields.items()
            if key not in RARE or getattr(self, key) != usual[key].default
        }

    @model_validator(mode="after")
    def _check_calibration(self) -> Recipe:
        if self.base.needs_calibration and self.calibration is None:
            problem = (
                f"base: {self.base.name} needs a calibration, which counts the choices of experts"
            )
            raise PydanticCustomError("base", "{problem}", {"problem": problem, "loc": ("base",)})
        if self.budget is not None and (self.version == 1 or self.calibration is None):
            lacks = "version: 2" if self.version == 1 else "a calibration with gradients, --others"
            problem = f"budget: a recipe with a budget needs {lacks}"
            raise PydanticCustomError(
                "budget", "{problem}", {"problem": problem, "loc": ("budget",)}
            )
        if self.base_codec and not self.base.is_stored:
            problem = f"base_codec: base: {self.base.name} leaves no base to code; leave it out"
            loc = ("base_codec",)
            raise PydanticCustomError("base", "{problem}", {"problem": problem, "loc": loc})
        if self.needs_of_calibration != "nothing" and self.calibration is None:
            field, number, rule = next(
                entry
                for entry in self._codec_rules
                if entry[2].codec.needs_of_calibration == self.needs_of_calibration
            )
            how = " --gradients" if self.needs_of_calibration == "gradients" else ""
            which = f"rule {number + 1}" if field == "rules" else f"{field}, rule {number + 1}"
            problem = (
                f"{which}: {rule.codec.label!r} needs a calibration; run ders calibrate{how} and "
                "give its file as `calibration`"
            )
            raise PydanticCustomError(
                "rules", "{problem}", {"problem": problem, "loc": (field, number)}
            )
        return self

    @property
    def _codec_rules(self) -> list[tuple[str, int, CodecRule]]:
        """Every rule, with the field that it is in and its number there."""
        fields: dict[str, tuple[CodecRule, ...]] = {
            "rules": self.rules,
            "base_codec": self.base_codec,
            "others": self.others,
        }
        return [
            (field, number, rule)
            for field, rules in fields.items()
            for number, rule in enumerate(rules)
        ]

    @property
    def needs_of_calibration(self) -> Need:
        """The most that a codec of its rules needs."""
        needs = {rule.codec.needs_of_calibration for _, _, rule in self._codec_rules}
        return max(needs, key=NEEDS.index, default="nothing")

    @property
    def suits_shared_error(self) -> bool:
        """Whether deltas had better not hold the error of the coded bases, because all codecs that
        lose something of them would make it larger."""
        of_deltas, of_bases = (
            [codec for codec in _codecs_that_count(rules) if not codec.lossless]
            for rules in (self.rules, self.base_codec)
        )
        if not of_deltas or not of_bases:
            return False
        return all(codec.error_exceeds_delta for codec in of_deltas)

    @property
    def shares_base_error(self) -> bool:
        """Whether all experts have the error of a coded base."""
        if self.base_error is None and self.version == 2:
            return self.suits_shared_error
        return self.base_error == "shared"

    def with_base_error(self) -> Recipe:
        """The recipe with the word for `base_error` that its codecs decide on, as it is to be
        written into files; a recipe of version 1 as it is."""
        if self.version == 1 or self.base_error is not None or not self.base_codec:
            return self
        return self.changed(base_error="shared" if self.shares_base_error else "absorbed")

    @property
    def files(self) -> tuple[Path, ...]:
        """Other files that it reads."""
        return self.base.files + ((self.calibration,) if self.calibration is not None else ())

    def public(self) -> Recipe:
        """The recipe as it travels: other files by their names alone, not by paths of this
        machine."""
        changes: dict[str, Any] = {"base": self.base.public()}
        if self.calibration is not None:
            changes["calibration"] = Path(self.calibration.name)
        return self.model_copy(update=changes)

    def changed(self, **fields: Any) -> Recipe:
        """The recipe with other values of some fields. Raises RecipeError if they do not go
        together, as where a codec needs a calibration and there is none."""
        try:
            return Recipe.model_validate({**dict(self), **fields})
        except ValidationError as error:
            raise RecipeError(sentence_of(error)) from error

    def codec(self, layer: int, projection: str, expert: int = 0) -> Codec:
        """The codec of one expert's weight."""
        for rule in reversed(self.rules):
            if rule.selects(layer, projection, expert):
                return rule.codec
        return Keep()

    def group_codec(self, layer: int, projection: str, experts: int) -> GroupCodec:
        """The codecs of a group of that many experts; a shared one counts as the last."""
        of_group = (rule for rule in reversed(self.rules) if rule.is_of(layer, projection))
        last = next(of_group, None)
        if last is None or last.is_of_all_experts:
            return GroupCodec.same(Keep() if last is None else last.codec, experts)
        return GroupCodec.of([self.codec(layer, projection, expert) for expert in range(experts)])

    def codec_of_base(self, layer: int, projection: str) -> Codec:
        """The codec of a group's bases."""
        matching = (
            rule.codec for rule in reversed(self.base_codec) if rule.is_of(layer, projection)
        )
        return next(matching, Keep())

    def codec_of_tensor(self, tensor: OtherTensor) -> Codec:
        """The codec of a tensor outside the experts."""
        matching = (rule.codec for rule in reversed(self.others) if rule.selects(tensor))
        return next(matching, Keep())

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Raises RecipeError, with the line where it is known."""
        data = load_mapping(text, "recipe", "at least a name")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _recipe_error(error, text) from error

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _codecs_that_count(rules: Iterable[GroupRule]) -> list[Codec]:
    """Of the last rule that is about all, and those after it."""
    codecs: list[Codec] = []
    for rule in rules:
        if rule.is_of_all:
            codecs.clear()
        codecs.append(rule.codec)
    return codecs


def _recipe_error(error: ValidationError, text: str) -> RecipeError:
    """The gravest fault as one sentence, with its line in `text`."""
    fault = gravest(error)
    message = fault.sentence(known=Recipe.model_fields)
    return RecipeError(message, line_of(text, fault.path + fault.inner))

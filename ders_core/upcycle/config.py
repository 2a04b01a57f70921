"""The configuration of `ders upcycle`: pydantic in memory, YAML on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ders_core.checkpoint.layouts import PROJECTIONS, Projection
from ders_core.errors import RecipeError, gravest
from ders_core.files.missing import local_path
from ders_core.files.untrusted_yaml import parse_yaml
from ders_core.recipe.numbers import parse_numbers
from ders_core.recipe.yaml_text import line_of, load_mapping, read_file
from ders_core.upcycle.forms import Form, make_form
from ders_core.upcycle.forms.lowrank import LowRankForm


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FormRule(_Section):
    """A form for one or more projections, with the form's parameters."""

    projections: tuple[Projection, ...] = PROJECTIONS  # type: ignore[assignment]
    form: SerializeAsAny[Form]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("form"), str):
            return data
        form = {key: value for key, value in data.items() if key != "projections"}
        return {key: data[key] for key in ("projections",) if key in data} | {"form": form}

    @field_validator("projections", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("form", mode="before")
    @classmethod
    def _make(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        try:
            return make_form(value)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        except ValidationError as error:
            raise PydanticCustomError(
                "form", "the form's parameters are wrong", {"findings": error.errors()}
            ) from error

    def written(self) -> dict[str, Any]:
        """As a person would write it."""
        everywhere = self.projections == PROJECTIONS
        projections = {} if everywhere else {"projections": list(self.projections)}
        return projections | self.form.model_dump(mode="json", exclude_none=True)


class Router(_Section):
    """How the routers start, and the loss that keeps the experts' loads even."""

    init: Literal["random", "clusters"] = "random"
    """`random`: normal with `std`; `clusters`: centres of what the dense FFN sees of the text."""
    std: float = Field(default=0.02, ge=0)
    train: bool = True
    balance: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss (Switch, arXiv 2101.03961, eq. 4), 1 where it is even."""


class Data(_Section):
    """Texts to train on and to measure with: files and directories of UTF-8 text or `.jsonl` with a
    `text` or a chat in each line (see `ders_core.files.texts`)."""

    texts: tuple[Path, ...] = Field(min_length=1)
    heldout: Path | None = None
    window: int = Field(default=512, ge=2)
    """Tokens of context."""

    @field_validator("texts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value


class Training(_Section):
    """How long and how fast; the arguments of the Hugging Face `Trainer`."""

    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=8, ge=1)
    """Windows in a forward pass, on each device."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes in a step."""
    learning_rate: float = Field(default=2e-4, gt=0)
    base_rate: float | None = Field(default=None, ge=0)
    """Of W_shared; None for the same."""
    router_rate: float | None = Field(default=None, ge=0)
    """Of the routers; None for the same."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int = Field(default=10, ge=0)
    """Steps in which the rates rise."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)
    """Limit of the gradient's norm; 0 for no limit."""
    bf16: bool = False
    """Compute in bfloat16; what is trained stays in float32."""
    gradient_checkpointing: bool = False
    save_every: int = Field(default=100, ge=1)
    """Steps between two training checkpoints."""
    keep: int = Field(default=2, ge=1)
    """How many training checkpoints are kept."""
    measure_every: int = Field(default=0, ge=0)
    """Steps between two measurements on the held-out text; 0 for only at the end."""
    heldout_tokens: int = Field(default=8192, ge=2)


class UpcycleConfig(_Section):
    """How a dense model becomes an MoE, and how that is trained."""

    version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=80)
    seed: int = Field(default=0, ge=0, lt=2**31)
    experts: int = Field(default=4, ge=2)
    top_k: int = Field(default=2, ge=1)
    layers: str = "all"
    """`all`, `every-other` (the 2nd, the 4th, …), or numbers and ranges such as '0-3,7'."""
    universal: bool = False
    """An always-on FFN besides the experts, of the same base (extended DeRS)."""
    base: Literal["trained", "frozen"] = "trained"
    """W_shared; frozen costs quality (DeRS, table 5)."""
    forms: tuple[FormRule, ...] = (FormRule(form=LowRankForm(rank=4)),)
    """Read from top to bottom; the last that names a projection counts."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation, relative to the weight's, of what is added to each expert at the start;
    with 0 the MoE starts as the dense model."""
    router: Router = Router()
    train: tuple[str, ...] = ()
    """Patterns of names of further parameters to train, such as `*.self_attn.*`."""
    data: Data
    training: Training = Training()

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError(f"{value!r} must be one line of printable characters")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        return ",".join(map(str, value)) if isinstance(value, list) else value

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, value: str) -> str:
        if value != "every-other":
            parse_numbers(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> UpcycleConfig:
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, but there are {self.experts} experts")
        named = {projection for rule in self.forms for projection in rule.projections}
        if named != set(PROJECTIONS):
            missing = min(set(PROJECTIONS) - named)
            raise ValueError(f"forms: none covers the projection {missing!r}")
        return self

    def form(self, projection: str) -> Form:
        """The form of one projection's deltas."""
        return next(rule.form for rule in reversed(self.forms) if projection in rule.projections)

    @property
    def label(self) -> str:
        """The forms in a few words."""
        by_form: dict[str, list[str]] = {}
        for projection in PROJECTIONS:
            by_form.setdefault(self.form(projection).label, []).append(projection)
        if len(by_form) == 1:
            return next(iter(by_form))
        return "; ".join(f"{', '.join(names)}: {label}" for label, names in by_form.items())

    def chosen_layers(self, layers: int) -> list[int]:
        """The layers that become MoE, of a model with `layers` layers. Raises RecipeError."""
        if self.layers == "every-other":
            return list(range(1, layers, 2))
        ranges = parse_numbers(self.layers)
        if ranges is None:
            return list(range(layers))
        deepest = max(numbers[-1] for numbers in ranges)
        if deepest >= layers:
            raise RecipeError(
                f"layers names layer {deepest}, but the model's layers are 0-{layers - 1}"
            )
        return sorted({layer for numbers in ranges for layer in numbers})

    @classmethod
    def from_yaml(cls, text: str) -> UpcycleConfig:
        """Raises RecipeError, with the line if it is known."""
        data = load_mapping(text, "configuration", "a name and data")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _config_error(error, text) from error

    def to_yaml(self) -> str:
        """As a person would write it."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        fields |= {"version": self.version, "name": self.name}
        fields["forms"] = [rule.written() for rule in self.forms]
        ordered = {key: fields[key] for key in type(self).model_fields if key in fields}
        return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)


def _config_error(error: ValidationError, text: str) -> RecipeError:
    """The gravest fault in one sentence, with its line."""
    fault = gravest(error)
    keys = _keys(text)
    if fault.kind == "missing":
        keys.add(str(fault.path[-1]))
    fault = fault.at(*(part for part in fault.path if isinstance(part, int) or part in keys))
    written = fault.path[:-1] if fault.kind == "missing" else fault.path
    return RecipeError(fault.sentence(), line_of(text, written) if written else None)


def _keys(text: str) -> set[str]:
    """Every key of a YAML text: pydantic's paths hold other names too."""
    keys: set[str] = set()
    waiting: list[Any] = [parse_yaml(text)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            keys |= {str(key) for key in value}
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return keys


def load_config(file: str | Path) -> UpcycleConfig:
    """From a YAML file. Raises RecipeError."""
    return read_file(local_path(file, RecipeError), UpcycleConfig.from_yaml)

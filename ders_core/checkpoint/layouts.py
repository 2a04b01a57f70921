"""Layouts: how a family of models names and shapes its experts on disk, one entry for each family.

The entries of this package are in `layouts.yaml`; a user's entries have the same form (see
`user_layouts`).
Placeholders in names: `{stack}` is any prefix, `{layer}` the layer's number, `{expert}` the
expert's, `{n}` any other number, `{any}` any other word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from ders_core.checkpoint.axes import EXPERT, PART, Axes
from ders_core.checkpoint.kinds import Kind
from ders_core.checkpoint.names import (
    MOST_DIGITS,
    PLACEHOLDERS,
    FirstOf,
    NameTemplate,
    number_of,
)
from ders_core.checkpoint.numbering import NumberedNames, numbers_in
from ders_core.errors import CheckpointError, gravest
from ders_core.files.address import file_size, is_file, read_bytes
from ders_core.files.links import check_within
from ders_core.files.package_data import plain_yaml
from ders_core.files.untrusted_yaml import YamlFault, parse_yaml

Projection = Literal["gate", "up", "down"]
PROJECTIONS = ("gate", "up", "down")
"""Roles in an FFN: down(act(gate x) · up x), or down(act(up x)) where there is no gate."""

LAYOUT_FILE = "ders_layout.yaml"
USER_LAYOUTS = "DERS_LAYOUTS"
MOST_NAMES, MOST_ENTRIES = 64, 16
"""Of the weights of an entry and of its routers; of the entries in a file."""

LONGEST_PATTERN = 400
"""Characters of a pattern for names of other tensors."""

MOST_BYTES = 1 << 18
"""Of a user's file."""


class Weights(BaseModel):
    """The projections that one tensor holds, and the order of its axes (see `axes`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holds: tuple[Projection, ...] = Field(min_length=1)
    axes: str = "out in"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        """`gate` stands for `{holds: gate}`, and one projection for a list of one."""
        if isinstance(data, str):
            data = {"holds": data}
        if isinstance(data, dict) and isinstance(data.get("holds"), str):
            data = data | {"holds": (data["holds"],)}
        return data

    @model_validator(mode="after")
    def _check(self) -> Weights:
        order = self.parsed.order
        if (PART in order) != (len(self.holds) > 1):
            raise ValueError(
                f"axes {self.axes!r} must name 'part' exactly where several projections are held"
            )
        return self

    @cached_property
    def parsed(self) -> Axes:
        return Axes.parse(self.axes)


@dataclass(frozen=True)
class Match:
    """What a layout reads from a tensor's name. expert: None if the tensor holds all experts."""

    block: str
    stack: str
    """The block's name with `*` for the layer's number: layers of one stack share it."""
    scope: str
    """The part of the name before the layer's number."""
    layer: int
    expert: int | None
    weights: Weights


class Layout(BaseModel):
    """Where the experts of a family are stored. Tensor names follow the block's, after a dot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    models: tuple[str, ...] = ()
    """The `model_type`s of config.json that use this layout; empty: the family's name alone. It
    also covers the text part of a model, `<model_type>_text`."""
    block: str
    """The MoE block, or the FFN of a dense model."""
    experts: Mapping[str, Weights] = Field(max_length=MOST_NAMES)
    """Weights and biases by name; a name without `{expert}` holds all experts, or the dense FFN."""
    router: tuple[str, ...] = Field(default=(), max_length=MOST_NAMES)
    """Possible names of the router's weight `[experts, hidden]`."""
    shared: Mapping[str, Weights] = Field(default={}, max_length=MOST_NAMES)
    """The always-on expert's tensors, if there is one; a name with `{layer}` is complete and does
    not follow the block's."""
    kinds: Mapping[Annotated[str, Field(min_length=1, max_length=LONGEST_PATTERN)], Kind] = Field(
        default={}, max_length=MOST_NAMES
    )
    """What tensors outside the experts are, by patterns of their whole names (`*`: any characters),
    the first that fits; for those whose names say nothing, or something else (`kinds.yaml`)."""

    @field_validator("router", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Layout:
        if "{layer}" not in self.block:
            raise ValueError(f"block {self.block!r} must contain {{layer}}")
        for name, weights in self.experts.items():
            if "{expert}" in name and EXPERT in weights.parsed.order:
                raise ValueError(f"{name!r}: the expert is in the name and in the axes too")
        for name in (self.block, *self.experts, *self.shared, *self.router):
            unknown = set(re.findall(r"\{(.*?)\}", name)) - set(PLACEHOLDERS)
            if unknown:
                raise ValueError(f"{name!r}: unknown placeholder {{{min(unknown)}}}")
        for name in (*self.experts, *self.shared):
            self._template(name)
        if not any("down" in weights.holds for weights in self.experts.values()):
            raise ValueError("no tensor holds the projection 'down'")
        return self

    def stores(self, model_type: str) -> bool:
        """Whether models with that `model_type` use this layout."""
        return model_type.removesuffix("_text") in (self.models or (self.family,))

    @cached_property
    def _names(self) -> FirstOf:
        return FirstOf([self._template(name) for name in self.experts])

    @cached_property
    def _shared_names(self) -> FirstOf:
        return FirstOf([self._template(name) for name in self.shared])

    @cached_property
    def _weights(self) -> tuple[Weights, ...]:
        return tuple(self.experts.values())

    @cached_property
    def _shared_weights(self) -> tuple[Weights, ...]:
        return tuple(self.shared.values())

    def _template(self, name: str) -> NameTemplate:
        """Raises ValueError if a placeholder is there too often."""
        if "{layer}" in name:
            return NameTemplate(name)
        return NameTemplate(self.block, f".{name}")

    def match(self, tensor: str) -> Match | None:
        """The match of a routed expert's tensor, or None for any other name."""
        return _match(tensor, self._names, self._weights)

    def match_shared(self, tensor: str) -> Match | None:
        """The match of an always-on expert's tensor, or None for any other name."""
        return _match(tensor, self._shared_names, self._shared_weights)

    def match_each(self, names: NumberedNames) -> Iterator[tuple[Match, int | None] | None]:
        """For each name what `match` finds, in a small part of the time: a match of which all but
        the expert is the name's, and the name's expert."""
        return _match_each(names, self._names, self._weights)

    def match_each_shared(self, names: NumberedNames) -> Iterator[tuple[Match, int | None] | None]:
        """As `match_each`, of `match_shared`."""
        return _match_each(names, self._shared_names, self._shared_weights)


def _match(tensor: str, names: FirstOf, weights: Sequence[Weights]) -> Match | None:
    found = names.fill(tensor)
    while found is not None:
        number, filled = found
        begin, end = filled.layer
        layer = number_of(tensor[begin:end])
        expert = None if filled.expert is None else number_of(tensor[slice(*filled.expert)])
        if layer is not None and (expert is not None or filled.expert is None):
            return Match(
                block=tensor[: filled.block],
                stack=f"{tensor[:begin]}*{tensor[end : filled.block]}",
                scope=tensor[:begin],
                layer=layer,
                expert=expert,
                weights=weights[number],
            )
        found = names.fill_after(tensor, number + 1)
    return None


_NOTHING, _ALL = -2, -1
"""Of a kind of names: none matches; no number is the expert's alone, so each is looked at."""


def _match_each(
    numbered: NumberedNames, names: FirstOf, weights: Sequence[Weights]
) -> Iterator[tuple[Match, int | None] | None]:
    """Look one name up of those that differ in the expert's number only."""
    if not names.leaves_numbers or any(len(digits) > MOST_DIGITS for digits in numbered.numbers):
        for name in numbered.names:
            match = _match(name, names, weights)
            yield None if match is None else (match, match.expert)
        return
    forms: dict[str, tuple[int, int, dict[tuple[str, ...], Match | None]]] = {
        kind: (count, _number_of_expert(kind, names), {}) for kind, count in numbered.counts.items()
    }
    numbers, begin = numbered.numbers, 0
    for name, kind in zip(numbered.names, numbered.kinds, strict=True):
        count, place, known = forms[kind]
        at, end = begin + place, begin + count
        if place == _NOTHING:
            yield None
        elif place == _ALL:
            match = _match(name, names, weights)
            yield None if match is None else (match, match.expert)
        else:
            others = (*numbers[begin:at], *numbers[at + 1 : end])
            if others not in known:
                known[others] = _match(name, names, weights)
            match = known[others]
            yield None if match is None else (match, int(numbers[at]))
        begin = end


def _number_of_expert(kind: str, names: FirstOf) -> int:
    """Which of the numbers of a kind of names is the expert's; _NOTHING, or _ALL."""
    found = names.fill(kind)
    if found is None:
        return _NOTHING
    _, filled = found
    numbers = numbers_in(kind)
    if filled.expert not in numbers or filled.expert[1] <= filled.block:
        return _ALL
    return numbers.index(filled.expert)


class _Registry(BaseModel):
    """The file `layouts.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: tuple[Layout, ...]
    dense: tuple[Layout, ...]


@cache
def _registry() -> _Registry:
    return _Registry.model_validate(plain_yaml(Path(__file__).with_name("layouts.yaml")))


def known_layouts() -> tuple[Layout, ...]:
    """The MoE families of `layouts.yaml`."""
    return _registry().families


def dense_layouts() -> tuple[Layout, ...]:
    """The forms of a dense model's FFN in `layouts.yaml`."""
    return _registry().dense


@cache
def _entries() -> TypeAdapter[list[Layout]]:
    return TypeAdapter(Annotated[list[Layout], Field(max_length=MOST_ENTRIES)])


def user_layouts(checkpoint: Path) -> list[Layout]:
    """The user's entries: first `ders_layout.yaml` next to the checkpoint's config, then the YAML
    files in the folder `$DERS_LAYOUTS` (default: ~/.config/ders/layouts).

    Raises CheckpointError that names the malformed file and its fault.
    """
    folder = Path(os.environ.get(USER_LAYOUTS) or "~/.config/ders/layouts").expanduser()
    files = [checkpoint / LAYOUT_FILE, *sorted(folder.glob("*.yaml"))]
    check_within(files[0], checkpoint)
    return [layout for file in files if is_file(file) for layout in read_layouts(file)]


def read_layouts(file: Path) -> list[Layout]:
    """One entry or a list of them. Raises CheckpointError."""
    try:
        size = file_size(file)
        if size > MOST_BYTES:
            raise CheckpointError(f"{file} has {size} bytes, and at most {MOST_BYTES} are read")
        data = parse_yaml(read_bytes(file).decode("utf-8-sig"))
        return _entries().validate_python(data if isinstance(data, list) else [data])
    except ValidationError as error:
        fault = gravest(error)  # its path begins with the number of the entry
        sentence = fault.at(*(fault.path[1:] or ("the entry",))).sentence()
        raise CheckpointError(f"{file}: {sentence}; see the README's Layouts") from error
    except YamlFault as error:
        where = f"{file}, line {error.line}" if error.line else str(file)
        raise CheckpointError(f"{where} is not a YAML layout: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; save it as UTF-8") from error

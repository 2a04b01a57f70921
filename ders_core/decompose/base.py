"""What a kind of base is, and the registry of all kinds.

A base is what the experts' deltas are taken against: W_i = W_base + Δ_i (DeRS eq. 2). A kind of
base is one file in `ders_core/decompose/bases/`: a frozen set of fields, as the recipe's YAML has
them, and the act of decomposing a group. Recipes, plans, the Recipe page and the conformance tests
(`ders_core.decompose.testing`) find it in the registry `BASES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.decomposition import Decomposition
from ders_core.errors import RecipeError
from ders_core.later import torch
from ders_core.registry import Registry

_SHOWN = 60
"""How many characters of a wrong value the message about it shows."""


@dataclass(frozen=True)
class BaseContext:
    """What a base may know besides the group.

    device: where deltas are wanted. tokens: how many tokens each expert of a group saw, `[K]`; None
    without a calibration.
    """

    device: torch.device | str = "cpu"
    tokens: Callable[[ExpertGroup], Sequence[int]] | None = None


@dataclass(frozen=True)
class BaseCount:
    """How many bases a group gets.

    most: None for one base `[out, in]`, the most that a stack `[bases, out, in]` can hold.
    exact: whether it is that number whatever the weights are.
    """

    most: int | None = None
    exact: bool = True


class Base(BaseModel, ABC):
    """A kind of base; a subclass declares its fields as the recipe's YAML has them.

    Without fields, the recipe names the kind by its word (`base: mean`). With fields, it is a
    mapping of them, and one field has the kind's name (`base: {clusters: auto}`). A field that is a
    `Path` is a file or directory that the base reads. Objects are immutable and hold no open files:
    they are pickled to other processes and used from several threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word in recipes and reports."""
    label: ClassVar[str]
    """What the Recipe page calls it, in two or three words."""
    summary: ClassVar[str]
    """One sentence that helps a person to choose."""
    order: ClassVar[int] = 100
    """Its place in lists for people, and among the candidates of `auto`; ties by name."""
    needs_calibration: ClassVar[bool] = False
    """Whether `BaseContext.tokens` must be there."""
    is_stored: ClassVar[bool] = True
    """Whether there is a base to store; without one it is zero."""
    is_optional: ClassVar[bool] = False
    """Whether a group whose experts share nothing goes without a base."""
    is_made_in_slabs: ClassVar[bool] = True
    """Whether it is made of a few rows of all experts at a time, and not of whole experts."""
    tried_by_auto: ClassVar[bool] = False
    """Whether `base: auto` tries it; then `start` must return one."""

    @classmethod
    def start(cls) -> Base | None:
        """The base to start with after choosing this kind; None if a field must be filled in
        first. The Recipe page asks for it by the field's `title` and `description`."""
        required = any(field.is_required() for field in cls.model_fields.values())
        return None if required else cls()

    @classmethod
    def spelling(cls) -> str:
        """How a recipe writes it, for the message about one that is wrong."""
        return cls.name

    def dump(self) -> str | dict[str, Any]:
        """The base as it is written in a recipe: its word, or a mapping of plain values."""
        if not type(self).model_fields:
            return self.name
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it reads besides the checkpoint."""
        return tuple(self._paths().values())

    def public(self) -> Self:
        """The base as it travels: files by their names alone, not by paths of this machine."""
        names = {field: Path(path.name) for field, path in self._paths().items()}
        return self.model_copy(update=names)

    def _paths(self) -> dict[str, Path]:
        fields = {field: getattr(self, field) for field in type(self).model_fields}
        return {field: value for field, value in fields.items() if isinstance(value, Path)}

    def check_files(self) -> None:
        """Raise CheckpointError if what it reads cannot be its base; before any work."""
        return

    def identity(self) -> str | None:
        """A hash of the content of what it reads, None if it reads nothing. An interrupted run
        is resumed only if this is as it was. Raises as `check_files` does."""
        return None

    def check(self, group: ExpertGroup) -> None:
        """Raise RecipeError if it cannot serve such a group; reads no weights."""
        return

    def count(self, experts: int) -> BaseCount:
        """How many bases a group of that many experts gets."""
        return BaseCount()

    @abstractmethod
    def decompositions(
        self, group: ExpertGroup, context: BaseContext
    ) -> Iterator[tuple[str, Decomposition]]:
        """The decompositions to choose from, at least one, each with the name that reports give it.

        The encoder takes the one with the least error; of equal ones the first. Lazy: each is made
        when it is read. The same group and context give the same bytes. Bases are in the
        group's storage dtype, on the context's device. Raises CheckpointError for weights that are
        not finite or do not fit what it reads.
        """


BASES: Registry[Base] = Registry("base", "ders_core.decompose.bases", RecipeError)
"""All kinds of base, by name."""


def kinds() -> list[type[Base]]:
    """All kinds of base in the order in which people read them."""
    return sorted(BASES.values(), key=lambda kind: (kind.order, kind.name))


def make_base(value: Any) -> Base:
    """A base from what a recipe's YAML has: a word, or a mapping with the kind's name among its
    keys. Raises RecipeError that lists the forms there are."""
    if isinstance(value, Base):
        return value
    try:
        if isinstance(value, Mapping):
            name = next((key for key in value if isinstance(key, str) and key in BASES), None)
            return BASES.find(name).model_validate(dict(value))
        return BASES.find(value).model_validate({})
    except (RecipeError, ValidationError) as error:
        text = repr(value)
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        *first, last = (kind.spelling() for kind in kinds())
        raise RecipeError(f"{shown} is not a base; give {', '.join(first)} or {last}") from error

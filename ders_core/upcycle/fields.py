"""What a person sets on a page: its label, its meaning, its range."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol


class Widgets(Protocol):
    """What can draw fields; `place` is where."""

    def number(self, place: Any, name: str, number: Number) -> None: ...

    def toggle(self, place: Any, name: str, label: str, help: str) -> None: ...


class Field(ABC):
    """One thing that a person sets."""

    @abstractmethod
    def draw(self, widgets: Widgets, place: Any, name: str) -> None:
        """name: of the value that it sets."""


@dataclass(frozen=True)
class Number(Field):
    """It is a whole number where its step is one."""

    label: str
    help: str
    least: int | float
    most: int | float
    step: int | float
    empty: str | None = None
    """What an empty field says, where it may be empty."""

    def draw(self, widgets: Widgets, place: Any, name: str) -> None:
        widgets.number(place, name, self)


@dataclass(frozen=True)
class Toggle(Field):
    """Yes or no."""

    label: str
    help: str

    def draw(self, widgets: Widgets, place: Any, name: str) -> None:
        widgets.toggle(place, name, self.label, self.help)

"""What is made once, when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


class Prepared(Generic[Kind]):
    """Something, or None where it cannot be made."""

    def __init__(self) -> None:
        self._made: tuple[Kind | None] | None = None

    def get(self, make: Callable[[], Kind | None]) -> Kind | None:
        if self._made is None:
            self._made = (make(),)
        return self._made[0]

"""Independent tasks, and what executes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class TaskRunner(Protocol):
    """Executes independent tasks: in this process, in several, or on several machines."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        """Yield `function(item)` for each item, in any order. Raises what `function` raises."""


def with_next(items: Sequence[T]) -> Iterator[tuple[T, T | None]]:
    """Pairs of an item and the one after it, whose bytes a task may read ahead."""
    return zip(items, [*items[1:], None][: len(items)], strict=True)


def one_by_one(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    """The task runner that executes tasks one after another in this process."""
    return map(function, items)

"""Independent tasks, and who carries them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Run(Protocol):
    """How independent tasks are executed; results may come in any order."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]: ...


def with_next(items: Sequence[T]) -> Iterator[tuple[T, T | None]]:
    """Each item and the one after it: what a task is told to have read ahead."""
    return zip(items, [*items[1:], None][: len(items)], strict=True)


def one_by_one(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    """Run tasks one after another in this process."""
    return map(function, items)

"""What comes next, made ready meanwhile: the base of the next group, while threads finish the one
before, whose last matrices leave some of them idle; or its weights, as memory becomes free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from itertools import chain

from ders_core.checkpoint.room import ROOM, Turn
from ders_core.compute.threads import one_thread_each, shared_out_to
from ders_core.compute.tracebacks import memory_goes_back
from ders_core.decompose.decomposition import Decomposition
from ders_core.errors import DersError
from ders_core.later import torch

Tried = Iterator[tuple[str, Decomposition]]
"""See `ders_core.decompose.base.Base.decompositions`."""


class NextBase:
    """At most one that was begun. For tasks that follow one another in one thread."""

    def __init__(self) -> None:
        self._pool = one_thread_each(1, torch.device("cpu"))
        self._context = copy_context()
        self._begun: tuple[object, Future[Tried], Turn] | None = None

    def begin(self, group: object, make: Callable[[], Tried], threads: int) -> None:
        """Make the first of a group's decompositions, in the background. group: anything that
        stands for it. threads: how many share the work."""

        def first() -> Tried:
            with shared_out_to(threads), torch.inference_mode():
                tried = make()
                return chain([next(tried)], tried)

        if self._begun is None:
            self._begun = group, self._pool.submit(self._context.run, first), ROOM.ahead()

    def read(self, group: object, read: Callable[[Turn], Tried]) -> None:
        """Read a group, in the background, whose decompositions are made when they are taken. read:
        gets the turn of the group, which comes then."""
        turn = ROOM.ahead()

        def begin() -> Tried:
            with memory_goes_back():
                return read(turn)

        if self._begun is None:
            self._begun = group, self._pool.submit(self._context.run, begin), turn

    def may_take(self, beyond: int) -> None:
        """Let the group that is read take so many bytes beyond `Holding.ahead`, all together."""
        if self._begun is not None:
            self._begun[2].may_take(beyond)

    def take(self, group: object) -> Tried | None:
        """What was begun; None if that was another group, or failed: it fails again where it is
        made, and can be told there."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        expected, tried, turn = begun
        if expected != group:
            turn.cancel()
            return None
        turn.come()
        try:
            return tried.result()
        except DersError:
            return None
        finally:  # an error's traceback keeps this frame, and so what these hold
            del begun, tried

    def end(self) -> None:
        """Wait for what runs, and forget it."""
        if self._begun is not None:
            self._begun[2].cancel()
        self._begun = None
        self._pool.shutdown(cancel_futures=True)


_next: ContextVar[NextBase | None] = ContextVar("next base", default=None)


@contextmanager
def bases_ahead() -> Iterator[None]:
    """Let the tasks that this thread executes begin with the base of the next one."""
    following = NextBase()
    token = _next.set(following)
    try:
        yield
    finally:
        _next.reset(token)
        following.end()


def next_base() -> NextBase | None:
    """That of this thread; None where nobody says that tasks follow one another."""
    return _next.get()

"""Room for groups that are held one after another: the next one is read into the memory that the
matrices of the one before leave, so that both together take no more than one. And for what encoding
needs beside them: where that is not there for every thread, some wait until matrices are done with.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ders_core.compute.buffers import reused
from ders_core.compute.threads import wait_until
from ders_core.later import torch


class NotWanted(Exception):
    """A group that is read ahead will not be asked for, or an expert that waits for room."""


class Room:
    """Counts the bytes that held matrices take, and work beside them, in all threads."""

    def __init__(self) -> None:
        self._changed, self._taken, self._beside = threading.Condition(), 0, 0

    def ahead(self) -> Turn:
        """The turn of a group that is read before it is asked for."""
        return Turn(self._changed)

    def at_once(self) -> Turn:
        """The turn of a group that is asked for when it is read."""
        turn = Turn(self._changed)
        turn.come()
        return turn

    def lend(self, shape: Sequence[int], dtype: torch.dtype, most: int, turn: Turn) -> torch.Tensor:
        """Memory for one matrix, `shape` in that dtype, uninitialised. Before the group's turn,
        wait until all that was lent and is still in use takes at most `most` bytes with it, and
        what its turn may take beyond. Raises NotWanted."""
        nbytes = math.prod(shape) * dtype.itemsize
        with self._changed:
            self._changed.wait_for(
                lambda: turn.has_come or turn.is_over or self._taken + nbytes <= most + turn.beyond
            )
            if turn.is_over:
                raise NotWanted
            self._taken += nbytes
        try:
            return reused(shape, dtype, partial(self._give_back, nbytes))
        except MemoryError:
            self._give_back(nbytes)
            raise

    @contextmanager
    def beside(self, nbytes: int, most: int) -> Iterator[None]:
        """A block that needs so many bytes. Wait until held matrices and all such blocks take at
        most `most` bytes with them, or there is no other block, so that there is always one; a
        thread that waits helps others (see `compute.threads.each_piece`). Raises NotWanted where
        the turn that this thread works in (`working_in`) is over."""
        turn = _working.turn

        def is_over() -> bool:
            return turn is not None and turn.is_over

        def is_free() -> bool:
            return not self._beside or self._taken + self._beside + nbytes <= most

        with self._changed:
            wait_until(self._changed, lambda: is_over() or is_free())
            if is_over():
                raise NotWanted
            self._beside += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._beside -= nbytes
                self._changed.notify_all()

    def _give_back(self, nbytes: int) -> None:
        with self._changed:
            self._taken -= nbytes
            self._changed.notify_all()


class Turn:
    """Of a group that is read ahead, or of one that is worked on. has_come: whether it is asked for
    by now, so that its reading waits for nothing. is_over: whether nobody will ask for it, or for
    the rest of it. beyond: bytes that it may take beyond `most` of `Room.lend`, as work on the
    group before does not need them any more."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self.has_come = self.is_over = False
        self.beyond = 0

    def may_take(self, beyond: int) -> None:
        """Set `beyond`, and let what waits for memory look again."""
        with self._changed:
            self.beyond = beyond
            self._changed.notify_all()

    def come(self) -> None:
        with self._changed:
            self.has_come = True
            self._changed.notify_all()

    def cancel(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()


class _Working(threading.local):
    """The turn that this thread works in."""

    turn: Turn | None = None


_working = _Working()


@contextmanager
def working_in(turn: Turn) -> Iterator[None]:
    """In this thread: wait for room no longer than the turn lasts."""
    before, _working.turn = _working.turn, turn
    try:
        yield
    finally:
        _working.turn = before


ROOM = Room()
"""Of this process."""

"""What is computed from a tensor that many experts share, computed once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ders_core.compute.threads import result_of, wait_for
from ders_core.later import torch

R = TypeVar("R")


class OfTheLast(Generic[R]):
    """Remembers what `compute` gave for the last tensor, as long as that tensor lives.

    Threads that want the same at once wait for one of them, and help it (see `each_piece`). So do
    those that want it of another tensor: what is computed may be large, and is for one at a time.
    The tensor must not be written to.
    """

    def __init__(self, compute: Callable[[torch.Tensor], R]) -> None:
        self._compute = compute
        self._lock = threading.RLock()  # a tensor may go while it is held
        self._last: tuple[weakref.ref[torch.Tensor], Future[R]] | None = None

    def __call__(self, tensor: torch.Tensor) -> R:
        found = Future[R]()
        while (before := self._begin(tensor, found)) is not None:
            if before[0]() is tensor:
                return result_of(before[1])
            wait_for(before[1])
        try:
            found.set_result(self._compute(tensor))
        except BaseException as error:
            with self._lock:
                self._last = None  # this one still: no other begins before it is done
            found.set_exception(error)
            raise
        return found.result()

    def _begin(
        self, tensor: torch.Tensor, found: Future[R]
    ) -> tuple[weakref.ref[torch.Tensor], Future[R]] | None:
        """What is known of this tensor, or is computed of another one; None if `found` is to be
        computed. Then what was known before is forgotten, as its memory may be needed."""
        with self._lock:
            last = self._last
            if last is not None and (last[0]() is tensor or not last[1].done()):
                return last
            self._last = weakref.ref(tensor, self._forget), found
            return None

    def _forget(self, gone: weakref.ref[torch.Tensor]) -> None:
        with self._lock:
            last = self._last
            if last is not None and last[0] is gone:
                self._last = None

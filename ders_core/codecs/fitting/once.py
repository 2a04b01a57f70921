"""What is computed from a tensor that many experts share, computed once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ders_core.compute.threads import result_of
from ders_core.later import torch

R = TypeVar("R")


class OfTheLast(Generic[R]):
    """Remembers what `compute` gave for the last tensor, as long as that tensor lives.

    Threads that want the same at once wait for one of them, and help it (see `each_piece`). The
    tensor must not be written to.
    """

    def __init__(self, compute: Callable[[torch.Tensor], R]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._last: tuple[weakref.ref[torch.Tensor], Future[R]] | None = None

    def __call__(self, tensor: torch.Tensor) -> R:
        with self._lock:
            last = self._last
            known = last[1] if last is not None and last[0]() is tensor else None
            if known is None:
                self._last = last = None  # its memory may be needed
                found = Future[R]()
                self._last = weakref.ref(tensor, self._forget), found
        if known is not None:
            return result_of(known)
        try:
            found.set_result(self._compute(tensor))
        except BaseException as error:
            self._last = None
            found.set_exception(error)
            raise
        return found.result()

    def _forget(self, gone: weakref.ref[torch.Tensor]) -> None:
        last = self._last
        if last is not None and last[0] is gone:
            self._last = None

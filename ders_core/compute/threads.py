"""Threads that compute in parallel, each on one core.

One thread for each piece of work is faster than many threads for each operation: pieces stay in a
core's cache. And a sum does not depend on how threads split it. How many there are is what torch
would use for one operation: `threads_of_torch` sets it for a piece of work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from ders_core.later import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

WORKING_BYTES = 1_200_000_000
"""What all pieces that threads work on may hold together, beside what is in memory anyway: two
experts of Mixtral's size at a time, however many threads there are."""


class _Given(threading.local):
    """How many threads torch had in this thread before `one_thread`."""

    threads = 1


_given = _Given()


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Make torch use this many threads for one operation, and `side_by_side` as many at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread. Sums depend on how threads split them; one thread gives the same
    sum on every machine. `side_by_side` still uses as many as there were."""
    before, _given.threads = _given.threads, available_threads()
    try:
        with threads_of_torch(1):
            yield
    finally:
        _given.threads = before


@contextmanager
def shared_out_to(count: int) -> Iterator[None]:
    """In a thread of `one_thread_each`: let work be shared out to so many."""
    before, _given.threads = _given.threads, count
    try:
        yield
    finally:
        _given.threads = before


def available_threads() -> int:
    """How many threads work may be shared out to, in this thread."""
    return max(_given.threads, torch.get_num_threads())


def threads_for(pieces: int, held: int, device: torch.device) -> int:
    """How many of these pieces of work are done at once, at least 1: as many as there are threads
    and as fit into `WORKING_BYTES`; on a GPU one, which keeps it busy.

    held: bytes that one piece holds while it is worked on.
    """
    if device.type != "cpu":
        return 1
    return max(1, min(available_threads(), pieces, WORKING_BYTES // max(held, 1)))


@contextmanager
def side_by_side(device: torch.device, count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads, by default all that there are. Inside the block, each
    operation runs on one thread. For a GPU the pool has one thread, which keeps the GPU busy: the
    one that is current here."""
    if device.type == "cuda":
        count = 1
    with one_thread(), one_thread_each(count or available_threads(), device) as pool:
        yield pool


def one_thread_each(count: int, device: torch.device) -> ThreadPoolExecutor:
    """A pool whose threads run each operation on one thread, on the GPU that is current here."""
    gpu = torch.cuda.current_device() if device.type == "cuda" else None

    def begin() -> None:
        torch.set_num_threads(1)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return ThreadPoolExecutor(count, "compute", begin)


@dataclass(frozen=True)
class IdleThreads:
    """Threads of a pool that have no task of their own any more, and help those that have. count:
    how many may help at once. Each thread that asks for help is of the pool."""

    pool: ThreadPoolExecutor
    count: int

    def help(self, work: Callable[[T], object], pieces: Iterable[T]) -> None:
        """`work(piece)` for each, in this thread and in idle ones, in any order: what a piece gives
        must not depend on the others. Raises what `work` raises, once nobody works on a piece."""
        # helpers that never begin stay in the pool's queue: they keep neither work nor pieces
        left = deque((work, piece) for piece in pieces)

        def take() -> None:
            while left:
                try:
                    do, piece = left.popleft()
                except IndexError:  # another thread was quicker
                    return
                do(piece)

        # the pool's own tasks come first: until these are all begun, nobody helps
        helpers = [self.pool.submit(take) for _ in range(self.count)]
        try:
            take()
        finally:
            left.clear()
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()


def in_this_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The function, to be called by other threads: in torch's inference mode if it is on here."""
    return partial(_in_mode, torch.is_inference_mode_enabled(), function)


def _in_mode(is_on: bool, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    with torch.inference_mode(is_on):
        return function(*args, **kwargs)

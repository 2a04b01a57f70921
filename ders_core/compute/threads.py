"""Threads that compute in parallel, each on one core.

One thread for each piece of work is faster than many threads for each operation: pieces stay in a
core's cache. And a sum does not depend on how threads split it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, cast

from ders_core.later import torch

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread. Sums depend on how threads split them; one thread gives the same
    sum on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def side_by_side(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of as many threads as torch would use for one operation. Inside the block, each
    operation runs on one thread. For a GPU the pool has one thread, which keeps the GPU busy."""
    count = 1 if device.type == "cuda" else torch.get_num_threads()
    with (
        one_thread(),
        ThreadPoolExecutor(count, "compute", torch.set_num_threads, (1,)) as pool,
    ):
        yield pool


def ahead(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """Yield the same items. A thread makes the next `count` of them while the caller uses one."""
    waiting = iter(items)
    end = object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        made: deque[Future[T | object]] = deque()
        try:
            for _ in range(count):
                made.append(pool.submit(next, waiting, end))
            while (item := made.popleft().result()) is not end:
                made.append(pool.submit(next, waiting, end))
                yield cast(T, item)
        finally:
            for future in made:
                future.cancel()

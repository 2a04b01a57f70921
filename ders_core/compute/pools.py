"""Work that a pool of threads does a bounded piece at a time; imports no torch.

However long the list of items is, only a few of them are under way, so only their results are in
memory. An error ends the work: what has not begun is left out, what has begun is waited for, since
it may still use memory that the caller takes back.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], under_way: int
) -> Generator[R]:
    """Yield `function(item)` for every item, in the order of the items.

    under_way: how many items, at least 1, have begun or are finished and not yielded yet. Raises
    what `function` raises.
    """
    waiting = iter(items)
    running = deque(pool.submit(function, item) for item in islice(waiting, under_way))
    try:
        while running:
            result = running[0].result()
            running.popleft()
            running.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
            del result  # its memory is free while the next one is waited for
    finally:
        _leave(running)


def as_finished(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], under_way: int
) -> Generator[R]:
    """As `in_order`, in the order in which they finish."""
    waiting = iter(items)
    running = {pool.submit(function, item) for item in islice(waiting, under_way)}
    try:
        while running:
            finished = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            result = finished.result()
            running.remove(finished)
            running |= {pool.submit(function, item) for item in islice(waiting, 1)}
            yield result
    finally:
        _leave(running)


def ahead(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """Yield the same items. A thread makes the next `count` of them while the caller uses one."""
    waiting, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        made: deque[Future[T | object]] = deque()
        try:
            for _ in range(count):
                made.append(pool.submit(next, waiting, end))
            while (item := made.popleft().result()) is not end:
                made.append(pool.submit(next, waiting, end))
                yield cast(T, item)
        finally:
            _leave(made)


def _leave(running: Iterable[Future[R]]) -> None:
    for future in running:
        future.cancel()
    wait(running)

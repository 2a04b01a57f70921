"""Threads that compute side by side, each on one core.

One thread per piece of work beats many threads per operation: pieces stay in a core's cache, and a
sum does not depend on how threads split it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on how threads split them; one thread makes them the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def side_by_side(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use for one operation; meanwhile each operation gets one of
    them. One thread for a GPU, which needs no more to be kept busy."""
    count = 1 if device.type == "cuda" else torch.get_num_threads()
    with (
        one_thread(),
        ThreadPoolExecutor(count, "compute", torch.set_num_threads, (1,)) as pool,
    ):
        yield pool

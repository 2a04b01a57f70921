"""Run independent tasks on this machine, or on a dask cluster at an address.

On this machine one task runs after another, and each shares its work out among threads
(`ders_core.compute.threads`), so that there is one group of experts in memory. Where there are
several GPUs, each has a thread with a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ders_core.errors import JobError

if TYPE_CHECKING:
    from ders_core.jobs.cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")


def gpus() -> int:
    """Number of GPUs of this machine, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


class Engine:
    """Runs tasks; a context manager that gives everything back at its end.

    workers: threads that compute on this machine, by default one per core; on "cuda" how many GPUs
    are used, by default all. Results do not depend on it. scheduler: the address of a running dask
    scheduler, for instance "tcp://10.0.0.5:8786"; its workers compute in place of this machine.
    """

    def __init__(
        self, workers: int | None = None, scheduler: str | None = None, device: str = "cpu"
    ) -> None:
        if workers is not None and workers < 1:
            raise JobError(f"{workers} workers cannot do anything; give at least 1")
        self._workers = workers
        self._scheduler = scheduler
        self._device = device
        self._resources = ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> Engine:
        if self._workers is not None and self._scheduler is None and self._device == "cpu":
            from ders_core.compute.threads import threads_of_torch

            self._resources.enter_context(threads_of_torch(self._workers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cluster = None
        self._resources.close()

    def run(self, function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        """Yield function(item) for every item, in the order in which they finish.

        An exception of a task is raised here. Raises JobError if a task keeps killing the process
        of a cluster that it runs in, or the cluster is lost.
        """
        if not items:
            return iter(())
        if self._scheduler is not None:
            return self._connected(self._scheduler).run(function, items)
        if self._device == "cuda":
            count = min(self._workers or gpus(), gpus(), len(items))
            if count > 1:
                return _on_gpus(function, items, count)
        return map(function, items)

    def _connected(self, scheduler: str) -> Cluster:
        """The cluster; the first call connects to it."""
        if self._cluster is None:
            from ders_core.jobs.cluster import connected

            self._cluster = self._resources.enter_context(connected(scheduler, self._device))
        return self._cluster


def _on_gpus(function: Callable[[T], R], items: Sequence[T], count: int) -> Iterator[R]:
    """As `Engine.run`: a thread for each of the first `count` GPUs, which is the current one of
    its thread."""
    import torch

    from ders_core.compute.pools import as_finished

    numbers: SimpleQueue[int] = SimpleQueue()
    for number in range(count):
        numbers.put(number)

    def begin() -> None:
        torch.cuda.set_device(numbers.get())

    with ThreadPoolExecutor(count, "gpu", begin) as pool:
        yield from as_finished(pool, function, items, count)

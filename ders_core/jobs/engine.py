"""Run independent tasks on many processes: an embedded dask cluster, or one at an address.

A task is a function of one item, both picklable. If a process dies, another one repeats its task.
The workers of a scheduler at an address must have this package installed and see the same files.
GPU tasks go to workers that offer the resource GPU, one task for each GPU.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ders_core.errors import JobError
from ders_core.files.scratch import scratch_directory
from ders_core.jobs.deaths import deaths_text

if TYPE_CHECKING:
    from ders_core.jobs.local_cluster import Deaths

T = TypeVar("T")
R = TypeVar("R")

GPU = "GPU"
"""The resource that workers with a GPU offer: `dask worker --resources "GPU=1"`."""
ONE_GPU = "ders_core.jobs.one_gpu"
CONNECT_SECONDS = 20
START_SECONDS = 300
"""For the processes of this machine: one that died at its start is started again."""
ALONE_SECONDS = 5.0
"""About what starting a process and importing torch takes: shorter work is done without."""
ALLOWED_DEATHS = 3
CONFIG = {
    "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
    "distributed.nanny.pre-spawn-environ": {},  # its default would change this process, too
    "distributed.nanny.environ": {"OMP_NUM_THREADS": "1"},  # for torch, if a task imports it
    "distributed.deploy.lost-worker-timeout": "1 day",  # its nanny starts another one
    "distributed.worker.use-file-locking": False,
    "distributed.scheduler.http.routes": [],  # no pages for other machines
    "distributed.worker.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1GB",
}


def gpus() -> int:
    """Number of GPUs of this machine, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


def cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Runs tasks; a context manager that stops the processes at its end.

    workers: processes, never more than there are tasks; by default one per GPU on "cuda", else one
    per core as soon as this process has worked for `ALONE_SECONDS` and something is left. One
    worker without a scheduler is this process itself. scheduler: the address of a running dask
    scheduler, for instance "tcp://10.0.0.5:8786".
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
        self._client: Any = None
        self._deaths: Deaths | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        self._resources.close()

    def run(self, function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
        """Yield function(item) for every item, in the order in which they finish.

        At most twice as many tasks as workers are submitted at once. An exception of a task is
        raised here. Raises JobError if a task keeps killing its process or the cluster is lost.
        """
        workers = self._workers or (gpus() if self._device == "cuda" else cores())
        workers = min(workers, len(items))
        if not items or (workers == 1 and self._scheduler is None):
            return map(function, items)
        if self._workers or self._scheduler or self._device == "cuda" or self._client:
            return self._spread(function, items, workers)
        return self._alone_at_first(function, items, workers)

    def _alone_at_first(
        self, function: Callable[[T], R], items: Sequence[T], workers: int
    ) -> Iterator[R]:
        started, done = time.monotonic(), 0
        while done < len(items) and time.monotonic() - started < ALONE_SECONDS:
            yield function(items[done])
            done += 1
        if done < len(items):
            yield from self._spread(function, items[done:], min(workers, len(items) - done))

    def _spread(self, function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
        from distributed import as_completed

        client = self._connect(workers)
        waiting = iter(items)

        def submit(count: int) -> list[Any]:
            return [
                client.submit(_on_one_thread, function, item, pure=False, resources=needs)
                for item in islice(waiting, count)
            ]

        needs = {GPU: 1} if self._device == "cuda" else None
        running = as_completed(submit(2 * self._capacity(client)), loop=client.loop)
        try:
            for future in running:
                result: R = self._result(future)
                future.release()
                running.update(submit(1))
                yield result
        finally:
            client.cancel([*running.futures])

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            if self._deaths is None:
                how = f"the logs of the workers at {self._scheduler} tell more"
            else:
                how = deaths_text(self._deaths.seen)
            raise JobError(f"a task lost its process {ALLOWED_DEATHS + 1} times: {how}") from error
        except BaseException as error:
            if future.status in ("cancelled", "lost"):
                where = self._scheduler or "the processes of this machine"
                raise JobError(f"the cluster ({where}) was lost; start it and resume") from error
            raise

    def _capacity(self, client: Any) -> int:
        """Tasks that the cluster computes at once. Raises JobError if it has no GPU for them."""
        if self._device != "cuda":
            threads: int = sum(client.nthreads().values())
            return max(1, threads)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        offered = int(sum(worker["resources"].get(GPU, 0) for worker in workers))
        if not offered:
            raise JobError(
                f"no worker at {self._scheduler} offers a GPU; start them with "
                f'`dask worker --resources "{GPU}=1"`, or choose the device cpu'
            )
        return offered

    def _connect(self, workers: int) -> Any:
        """A client of the cluster; the first call starts the cluster."""
        if self._client is not None:
            return self._client
        import dask
        from distributed import Client

        self._resources.enter_context(_quiet_loggers())
        self._resources.enter_context(dask.config.set(CONFIG))
        cluster = None if self._scheduler else self._start_cluster(workers)
        address = self._scheduler or "127.0.0.1"
        try:
            client = Client(cluster or address, timeout=CONNECT_SECONDS, set_as_default=False)
            self._resources.callback(client.close)
            seconds = CONNECT_SECONDS if self._scheduler else START_SECONDS
            client.wait_for_workers(1, timeout=seconds)
        except (OSError, TimeoutError, ValueError) as error:
            raise JobError(
                f"no dask scheduler with workers answers at {address}; start `dask scheduler` and "
                "`dask worker`, or leave the scheduler out"
            ) from error
        self._client = client
        return client

    def _start_cluster(self, workers: int) -> Any:
        from ders_core.jobs.local_cluster import Deaths, local_cluster

        scratch = self._resources.enter_context(scratch_directory("work"))
        self._deaths = Deaths()
        options = {"resources": {GPU: 1}, "preload": [ONE_GPU]} if self._device == "cuda" else {}
        return self._resources.enter_context(local_cluster(workers, scratch, self._deaths, options))


def _on_one_thread(function: Callable[[T], R], item: T) -> R:
    """Compute on one thread, because the processes share the cores. Takes no time to import torch
    if the function does not use it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    return function(item)


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Silence dask's logs: deaths of processes are reported as results."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

"""Tasks on a dask cluster that somebody runs: `dask scheduler`, and `dask worker` on each machine.

A task is a function of one item, both picklable. The workers must have this package installed and
see the same files. If a worker dies, another one repeats its task. GPU tasks go to workers that
offer the resource GPU, one task for each GPU.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker, as_completed

from ders_core.errors import JobError

T = TypeVar("T")
R = TypeVar("R")

GPU = "GPU"
"""The resource that workers with a GPU offer: `dask worker --resources "GPU=1"`."""
CONNECT_SECONDS = 20
CONFIG = {"distributed.admin.large-graph-warning-threshold": "1GB"}


class Cluster:
    """A cluster that answers. address: of its scheduler. device: where tasks compute."""

    def __init__(self, client: Client, address: str, device: str) -> None:
        self._client = client
        self._address = address
        self._device = device

    def run(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield function(item) for every item, in the order in which they finish.

        At most twice as many tasks as the cluster computes at once are submitted. An exception of a
        task is raised here. Raises JobError if a task keeps killing its process, the cluster is
        lost, or it has no GPU for tasks that want one.
        """
        client, waiting = self._client, iter(items)
        needs = {GPU: 1} if self._device == "cuda" else None

        def submit(count: int) -> list[Any]:
            return [
                client.submit(_on_one_thread, function, item, pure=False, resources=needs)
                for item in islice(waiting, count)
            ]

        running = as_completed(submit(2 * self._capacity()), loop=client.loop)
        try:
            for future in running:
                result: R = self._result(future)
                future.release()
                running.update(submit(1))
                yield result
        finally:
            client.cancel([*running.futures])

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except KilledWorker as error:
            raise JobError(
                f"a task lost its process again and again; the logs of the workers at "
                f"{self._address} tell more"
            ) from error
        except BaseException as error:
            if future.status in ("cancelled", "lost"):
                raise JobError(
                    f"the cluster ({self._address}) was lost; start it and resume"
                ) from error
            raise

    def _capacity(self) -> int:
        """Tasks that the cluster computes at once. Raises JobError if it has no GPU for them."""
        if self._device != "cuda":
            threads: int = sum(self._client.nthreads().values())
            return max(1, threads)
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        offered = int(sum(worker["resources"].get(GPU, 0) for worker in workers))
        if not offered:
            raise JobError(
                f"no worker at {self._address} offers a GPU; start them with "
                f'`dask worker --resources "{GPU}=1"`, or choose the device cpu'
            )
        return offered


@contextmanager
def connected(address: str, device: str) -> Iterator[Cluster]:
    """Yield the cluster of a scheduler. Raises JobError if none with workers answers."""
    with _quiet_loggers(), dask.config.set(CONFIG):
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _silent(address) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            except (OSError, TimeoutError) as error:
                raise _silent(address) from error
            yield Cluster(client, address, device)


def _silent(address: str) -> JobError:
    return JobError(
        f"no dask scheduler with workers answers at {address}; start `dask scheduler` and "
        "`dask worker`, or leave the scheduler out"
    )


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

"""The processes of this machine: an embedded dask cluster, whose workers may die at any moment.

A worker that dies while it starts makes dask give up the whole cluster; then it is started again. A
later death is dask's to mend: its nanny starts another process.

Other users of the machine reach the ports, so each cluster has a key of its own (mutual TLS), which
is made at its start and known to its processes alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import LocalCluster, Nanny
from distributed.core import Status
from distributed.security import Security

from ders_core.compute.oom import oom_kills
from ders_core.errors import JobError
from ders_core.jobs.deaths import Death, deaths_text

HOST = "127.0.0.1"
STARTS = 4
"""Starts of the cluster before it counts as impossible: as many as a task may lose processes."""
CLOSE_SECONDS = 30.0
NOTICED = 20
"""Looks for the end of a process, 0.05 s apart: the scheduler may know of it sooner."""
ENDED = (Status.closing, Status.closed, Status.closing_gracefully)


class Deaths:
    """The ends of processes that nobody asked to end, in their order."""

    def __init__(self) -> None:
        self._kills = oom_kills()
        self._statuses: list[int | None] = []

    def __len__(self) -> int:
        return len(self._statuses)

    def add(self, status: int | None) -> None:
        """status: as of `Death`."""
        self._statuses.append(status)

    @property
    def seen(self) -> Sequence[Death]:
        """All so far; of a process that has just ended, its end is waited for."""
        waited = 0
        while not self._statuses and waited < NOTICED:
            time.sleep(0.05)
            waited += 1
        now = oom_kills()
        starved = None if now is None or self._kills is None else now > self._kills
        return [Death(status, starved) for status in self._statuses]


@contextmanager
def local_cluster(
    workers: int, scratch: Path, deaths: Deaths, options: dict[str, Any]
) -> Iterator[LocalCluster]:
    """Start processes, and end them after the block, whatever state they are in by then.

    scratch: where dask puts its files. deaths: gets those of the processes. options: further ones
    of the workers. Raises JobError if they cannot be started.
    """
    with dask.config.set({"temporary-directory": str(scratch)}):
        cluster = _started(workers, scratch, deaths, options)
        try:
            yield cluster
        finally:
            _close(cluster)


def _started(workers: int, scratch: Path, deaths: Deaths, options: dict[str, Any]) -> LocalCluster:
    reason: object = "they died while they started"
    for _ in range(STARTS):
        before = len(deaths)
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                worker_class=_watched(deaths),
                processes=True,
                host=HOST,
                security=Security.temporary(),
                dashboard_address=f"{HOST}:0",  # without an address dask takes port 8787
                worker_dashboard_address=None,
                scheduler_kwargs={"dashboard": False},
                memory_limit=0,
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,
                **options,
            )
        except Exception as error:  # of dask's many ways to fail at this
            if len(deaths) == before:
                reason = error
                break
    else:
        reason = f"{reason}: {deaths_text(deaths.seen)}"
    raise JobError(f"{workers} worker processes could not be started ({reason}); try one worker")


def _watched(deaths: Deaths) -> type[Nanny]:
    class Watched(Nanny):
        """Notes how its processes end."""

        def _on_worker_exit_sync(self, exitcode: int | None) -> None:
            if self.status not in ENDED:
                deaths.add(exitcode)
            super()._on_worker_exit_sync(exitcode)

    return Watched


def _close(cluster: LocalCluster) -> None:
    """End the processes. However that goes, it must not hide why the work ended: one that is about
    to start again may end late, and dask's own checks fail for one that has just died."""
    started = [nanny.pid for nanny in cluster.workers.values()]
    with suppress(Exception):
        cluster.close(timeout=CLOSE_SECONDS)
    for number in filter(None, started):
        with suppress(psutil.Error):
            process = psutil.Process(number)
            if psutil.Process() in process.parents():
                process.kill()
                process.wait(CLOSE_SECONDS)

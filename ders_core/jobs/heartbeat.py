"""A thread that reports every two seconds that the worker is alive, with its memory and CPU use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import psutil

from ders_core.errors import JobError
from ders_core.jobs.claims import Claims

INTERVAL = 2.0


class Heartbeat:
    """Context manager: heartbeats while the block runs; at its end the worker leaves the store.

    `job_id` is reported with the next beat. The thread runs while the main thread does a job, or
    waits for the process that does it.
    """

    def __init__(self, claims: Claims, interval: float = INTERVAL) -> None:
        self.job_id: int | None = None
        self._claims = claims
        self._interval = interval
        self._usage = Usage()
        self._stop = threading.Event()
        self._beating = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        _unless_refused(self.beat)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        _unless_refused(self._claims.leave)

    def beat(self) -> None:
        """Raises JobError if the store cannot be written."""
        with self._beating:
            memory, cpu = self._usage.measure()
            self._claims.beat(self.job_id, memory, cpu)

    def work_on(self, job_id: int | None) -> None:
        """Report at once, if the store can be written, which job is worked on."""
        self.job_id = job_id
        _unless_refused(self.beat)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            _unless_refused(self.beat)  # the main thread notices a lasting fault


def _unless_refused(call: Callable[[], None]) -> None:
    with suppress(JobError, psutil.Error, OSError):
        call()


class Usage:
    """Memory and CPU use of this process and its children."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def measure(self) -> tuple[int, float]:
        """Resident bytes now, and percent of one core since the last call; children included."""
        me = psutil.Process()
        running = {process.pid: process for process in [me, *me.children(recursive=True)]}
        self._known = {pid: self._known.get(pid, process) for pid, process in running.items()}
        memory, cpu = 0, 0.0
        for process in self._known.values():
            try:
                memory += process.memory_info().rss
                cpu += process.cpu_percent()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return memory, cpu

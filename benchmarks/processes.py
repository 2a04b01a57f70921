"""Run one measurement in a process of its own: its seconds after the imports, of the clock and of
processors, and the most memory that it and its children held at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_SECONDS = 0.05
MARK = "measured: "


@dataclass(frozen=True)
class Measured:
    """seconds: of the measured part; user, system: of processors in it, all threads together.
    peak: bytes resident, of the process and its children. imports: bytes resident before the
    measured part. result: what it returned."""

    seconds: float
    user: float
    system: float
    peak: int
    imports: int
    result: Any


def report(measurement: Callable[[], Any]) -> None:
    """In the child: measure, and tell the parent."""
    imports = psutil.Process().memory_info().rss
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    result = measurement()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "seconds": seconds,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "imports": imports,
        "result": result,
    }
    print(MARK + json.dumps(measured), flush=True)


def measure(script: str, *arguments: str) -> Measured:
    """In the parent: run `script arguments` and hear what it reports."""
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        watch = _Watch(child.pid)
        out, _ = child.communicate()
        peak = watch.stop()
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if child.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} failed with {child.returncode}")
    return Measured(peak=peak, **json.loads(lines[-1].removeprefix(MARK)))


class _Watch:
    """A thread that adds up the memory of a process and its children, many times a second."""

    def __init__(self, pid: int) -> None:
        self._root, self._peak = psutil.Process(pid), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            total = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak

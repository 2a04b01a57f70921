"""Run one measurement in a process of its own: its seconds after the imports, of the clock and of
processors, the most memory that it and its children held at once, and whether it gave a second
processor work."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.02
MARK = "measured: "


@dataclass(frozen=True)
class Measured:
    """seconds: of the measured part; user, system: of processors in it, all threads together.
    peak: bytes resident, of the process and its children. imports: bytes resident before the
    measured part. result: what it returned. shared: the share of looks at the measured part at
    which two threads or more ran or waited for a processor, so that others' work on this machine
    does not count; None where the system does not tell. asked, fetched: bytes of files that the
    measured part asked the system for, and that the system fetched from disks for it; likewise."""

    seconds: float
    user: float
    system: float
    peak: int
    imports: int
    result: Any
    shared: float | None
    asked: int | None
    fetched: int | None


def report(measurement: Callable[[], Any]) -> None:
    """In the child: measure, and tell the parent."""
    imports, read_before = psutil.Process().memory_info().rss, _read()
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    result = measurement()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    asked, fetched = (
        None if after is None or before is None else after - before
        for before, after in zip(read_before, _read(), strict=True)
    )
    measured = {
        "asked": asked,
        "fetched": fetched,
        "seconds": seconds,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "imports": imports,
        "result": result,
        "span": (begun, begun + seconds),
    }
    print(MARK + json.dumps(measured), flush=True)


def _read() -> tuple[int | None, int | None]:
    """Bytes that this process asked for so far, and that came from disks."""
    if not hasattr(psutil.Process, "io_counters"):
        return None, None
    counters = psutil.Process().io_counters()
    return counters.read_chars, counters.read_bytes


def wait_for_start() -> None:
    """In the child: say that it is ready, and wait for others (`measure`)."""
    print(flush=True)
    sys.stdin.readline()


def measure(script: str, *arguments: str, start: threading.Barrier | None = None) -> Measured:
    """In the parent: run `script arguments` and hear what it reports. start: the child calls
    `wait_for_start`, and begins when all have that wait at this barrier."""
    command, stdin = [sys.executable, script, *arguments], subprocess.PIPE if start else None
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True) as child:
        watch = _Watch(child.pid)
        try:
            if start is not None:
                assert child.stdout is not None
                child.stdout.readline()
                start.wait()
            out, _ = child.communicate("\n" if start else None)
        except BaseException:
            child.kill()
            raise
        finally:
            watch.stop()
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if child.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} failed with {child.returncode}")
    measured = json.loads(lines[-1].removeprefix(MARK))
    shared = watch.shared(*measured.pop("span"))
    return Measured(peak=watch.peak, shared=shared, **measured)


class _Watch:
    """A thread that looks many times a second at the memory of a process and its children, and at
    the process's threads."""

    def __init__(self, pid: int) -> None:
        self._root, self.peak = psutil.Process(pid), 0
        self._looks: list[tuple[float, int]] = []
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
            self.peak = max(self.peak, total)
            self._looks.append((time.perf_counter(), _ready(self._root.pid)))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def shared(self, begun: float, ended: float) -> float | None:
        """As of `Measured`, between two times of this machine's clock."""
        looks = [ready for at, ready in self._looks if begun <= at <= ended]
        return sum(ready > 1 for ready in looks) / len(looks) if any(looks) else None


def _ready(pid: int) -> int:
    """How many of a process's threads run or wait for a processor; 0 where that is not known."""
    ready = 0
    with suppress(OSError):  # the process is over
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with suppress(OSError):  # the thread is over
                ready += stat.read_text().rpartition(")")[2].split()[0] == "R"
    return ready

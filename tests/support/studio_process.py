"""A studio that a test starts, and the end of every process that it started.

The worker leaves the app's process group on purpose, and outlives the app. What all processes of a
studio have in common is their environment: it names the workspace.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ders_core.jobs import JobStore
from ders_core.jobs.workspace import WORKER_LOG, WORKSPACE_VARIABLE, Workspace

ROOT = Path(__file__).parents[2]
PATIENCE = 15.0
"""Seconds that processes have to leave when they are asked to, and again when they are killed."""

HANG_UP = signal.SIGKILL if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else signal.SIGHUP
"""Under `nohup` no child hears of a terminal that is closed."""


@dataclass(frozen=True)
class Studio:
    """A running studio. app: the process of `ders app`; log: what it prints; token: what opens
    it."""

    address: str
    workspace: Path
    app: subprocess.Popen[bytes]
    log: Path
    token: str = ""

    @property
    def door(self) -> str:
        """The address that the app prints: it lets a browser in."""
        return f"{self.address}/?token={self.token}"

    @property
    def store(self) -> JobStore:
        return JobStore(Workspace(self.workspace).store_path)

    def check_processes(self) -> None:
        """Raise AssertionError with the last log lines if the app or the worker has ended."""
        assert self.app.poll() is None, f"the app has ended:\n{_tail(self.log)}"
        worker_lives = any(not worker.gone for worker in self.store.workers())
        assert worker_lives, f"the worker has ended:\n{self.worker_log()}"

    def worker_log(self) -> str:
        return _tail(self.workspace / WORKER_LOG)


@contextmanager
def running_studio(
    place: Path, *options: str, variables: Mapping[str, str] | None = None
) -> Iterator[Studio]:
    """Start `ders app` in the workspace `place`/workspace; at the end, however it comes, end the
    app, the server, the worker and the worker's processes, and wait until they are gone.

    options: further words of the command; variables: of its environment. The studio's address and
    token are those that the command prints. Call it in the main thread; meanwhile SIGTERM raises
    KeyboardInterrupt, as Ctrl-C does.
    """
    workspace, log, port = place / "workspace", place / "app.log", free_port()
    command = [sys.executable, "-c", "from ders_core.cli.main import main; main()", "app"]
    command += ["--workspace", str(workspace), "--port", str(port), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment[WORKSPACE_VARIABLE] = str(workspace)  # marks the processes
    environment.pop("DISPLAY", None)  # no second browser
    environment |= variables or {}
    with (
        _sigterm_interrupts(),
        open(log, "wb") as output,
        subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=output) as app,
    ):
        try:
            while (printed := _printed_address(log)) is None:
                assert app.poll() is None, f"the app has ended:\n{_tail(log)}"
                time.sleep(0.05)
            address, _, token = printed.partition("/?token=")
            yield Studio(address.rstrip("/"), workspace, app, log, token)
        finally:
            end_processes(workspace)


def processes_of(workspace: Path) -> list[psutil.Process]:
    """The living processes whose environment names the workspace; zombies are not among them."""
    return list(environments_of(workspace))


def environments_of(workspace: Path) -> dict[psutil.Process, dict[str, str]]:
    """The same with their environments: a process may be gone when it is asked for it later."""
    environments = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get(WORKSPACE_VARIABLE) == str(workspace):
                environments[process] = environment
    return environments


def end_processes(workspace: Path) -> None:
    """End the processes of a workspace and wait until none is left: ask them, then kill them.

    Raises AssertionError if one survives that.
    """
    known: set[psutil.Process] = set()  # a process that is ending has no environment any more
    for end in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + PATIENCE
        signalled: set[psutil.Process] = set()
        while (left := _living({*known, *processes_of(workspace)})) and time.monotonic() < deadline:
            for process in left - signalled:
                with suppress(psutil.NoSuchProcess):
                    end(process)
            signalled |= left
            known |= left
            time.sleep(0.05)
    assert not left, f"cannot be ended: {left}"


def _living(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Those that run; a zombie does not."""
    living = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.add(process)
    return living


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _printed_address(log: Path) -> str | None:
    """What the app says where it is; None before it does."""
    said = re.search(r"^DeRS Studio: (\S+) .*\n", log.read_text(errors="replace"), re.MULTILINE)
    return said[1] if said else None


def _tail(log: Path, lines: int = 30) -> str:
    if not log.is_file():
        return f"{log} does not exist"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

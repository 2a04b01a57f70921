"""Start a worker as a separate process that outlives the one that starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import ders_core
from ders_core.errors import JobError
from ders_core.files.private import private_directory, private_file
from ders_core.jobs.claims import Claims
from ders_core.jobs.job import WorkerState, process_lives
from ders_core.jobs.schema import one_at_a_time
from ders_core.jobs.store import JobStore
from ders_core.jobs.workspace import WORKER_LOG, Workspace

_started: list[subprocess.Popen[bytes]] = []
"""Processes to poll, so that a worker that ended leaves no zombie."""

_ids: dict[int, str] = {}
"""The ids of the workers that this process started, by pid."""


def start_worker_process(
    workspace: Workspace, scheduler: str | None = None, *, companion: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker, detached from the terminal; its output goes to the workspace's worker.log.

    The worker is announced in the store at once. companion: pid of a process; after its end the
    worker leaves as soon as it is idle. Raises JobError if no process can be started.
    """
    store = JobStore(workspace.store_path)
    worker_id = uuid.uuid4().hex
    command = package_command("ders_core.jobs.worker")
    command += ["--workspace", str(workspace.path), "--id", worker_id]
    command += ["--scheduler", scheduler] if scheduler else []
    try:
        private_directory(workspace.worker_log.parent)
        private_file(workspace.worker_log)
        with open(workspace.worker_log, "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=package_environment(),
            )
    except OSError as error:
        raise JobError(f"no worker can be started: {error}") from error
    try:
        Claims(store.path, worker_id).announce(process.pid, companion)
    except JobError:
        process.kill()  # nobody could find it, and each try would start another one
        process.wait()
        raise
    _ids[process.pid] = worker_id
    return process


def ensure_worker(workspace: Workspace, scheduler: str | None = None) -> WorkerState:
    """The live worker of a workspace; starts one if there is none.

    The worker that it starts, or whose companion has ended, gets this process as companion.
    Raises JobError if no worker can be started.
    """
    store = JobStore(workspace.store_path)
    _note_ends(store)
    with one_at_a_time(workspace.path / ".worker.lock", "no worker can be started"):
        worker = store.worker()
        alive = worker is not None and worker.alive
        companion = worker.companion if worker is not None else None
        if worker is not None and alive and companion and not process_lives(companion):
            alive = Claims(store.path, worker.id).adopt(os.getpid())
        if not alive:
            _started.append(start_worker_process(workspace, scheduler, companion=os.getpid()))
        worker = store.worker()
    if worker is None:
        raise JobError(f"the worker ended right after its start; see {WORKER_LOG} in the workspace")
    return worker


def _note_ends(store: JobStore) -> None:
    """Tell the store how workers that this process started have ended: only their parent sees."""
    for process in list(_started):
        status = process.poll()
        if status is not None:
            with suppress(JobError):  # then nobody knows
                Claims(store.path, _ids.pop(process.pid, "")).note_end(status)
            _started.remove(process)


def package_command(module: str) -> list[str]:
    """What starts a module of this package. Nothing is imported from the current directory: it may
    be a model's, with files of anybody in it."""
    return [sys.executable, "-P", "-m", module]


def package_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a process that must find this package, in a checkout too. environment: what
    else it gets; by default as this process."""
    root = Path(ders_core.__file__).resolve().parent.parent
    if root.name == "site-packages":
        return dict(environment)
    paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}

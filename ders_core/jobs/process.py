"""Start a worker as a process of its own, which outlives whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import ders_core
from ders_core.errors import JobError
from ders_core.jobs.claims import Claims
from ders_core.jobs.job import WorkerState, process_lives
from ders_core.jobs.schema import file_lock
from ders_core.jobs.store import JobStore
from ders_core.jobs.workspace import Workspace

LOG = "worker.log"

_started: list[subprocess.Popen[bytes]] = []
"""Kept so that a worker that ended can be waited for, and leaves no zombie."""


def start_worker_process(
    workspace: Workspace, scheduler: str | None = None, *, companion: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a worker, detached from the terminal, its words in the workspace's worker.log.

    It is announced in the store at once. companion: a process without which the worker leaves once
    nothing is left to do.
    """
    store = JobStore(workspace.store_path)
    worker_id = uuid.uuid4().hex
    command = [sys.executable, "-m", "ders_core.jobs.worker", "--workspace", str(workspace.path)]
    command += ["--id", worker_id]
    command += ["--scheduler", scheduler] if scheduler else []
    try:
        workspace.logs.mkdir(parents=True, exist_ok=True)
        with open(workspace.logs / LOG, "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )
    except OSError as error:
        raise JobError(f"no worker can be started: {error}") from error
    Claims(store.path, worker_id).announce(process.pid, companion)
    return process


def ensure_worker(workspace: Workspace, scheduler: str | None = None) -> WorkerState:
    """The living worker of a workspace; starts one if there is none.

    The one it starts, or finds left alone, stays as long as this process lives or work is left.
    """
    _started[:] = [process for process in _started if process.poll() is None]
    store = JobStore(workspace.store_path)
    with file_lock(workspace.path / ".worker.lock"):
        found = store.worker()
        alive = found is not None and found.alive
        if found is not None and alive and found.companion and not process_lives(found.companion):
            alive = Claims(store.path, found.id).adopt(os.getpid())
        if not alive:
            _started.append(start_worker_process(workspace, scheduler, companion=os.getpid()))
        found = store.worker()
    if found is None:
        raise JobError("the worker that was started is gone already; look into its log")
    return found


def _environment() -> dict[str, str]:
    """The worker must find this package even if it is run from a checkout that is not installed."""
    root = Path(ders_core.__file__).resolve().parent.parent
    if root.name == "site-packages":
        return dict(os.environ)
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

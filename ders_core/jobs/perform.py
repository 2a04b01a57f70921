"""Do a claimed job in this process, and write its end to the store."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ders_core.errors import Cancelled, DersError, JobError, OutputBusy
from ders_core.files.place_errors import system_error, write_error
from ders_core.jobs.claims import Claim, TakenOver
from ders_core.jobs.context import Released, TaskContext
from ders_core.jobs.job import Job
from ders_core.jobs.kind import KINDS, Kind, Result
from ders_core.jobs.patience import Patience, tell
from ders_core.jobs.stop import Stop
from ders_core.jobs.workspace import Workspace

BUSY_SECONDS = 60.0
"""How long a job that was begun before waits for an output that is locked. The process that died
over it holds the lock until its memory is freed, which may be many gigabytes."""

BUSY_PAUSE = 0.5
"""Seconds between two tries to use it."""


@dataclass(frozen=True)
class Setting:
    """What a worker does its jobs with. scheduler: address of a dask scheduler whose workers do the
    per-group work; stop: of the process; patience: what calls the job store."""

    workspace: Workspace
    scheduler: str | None
    stop: Stop
    patience: Patience


class InThisProcess:
    """Does jobs here; the libraries that they import stay in this process's memory."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def do(self, claim: Claim) -> None:
        """Do one job and write its end to the store, as soon as the store can be used."""
        of = self._setting
        context = TaskContext(claim, of.workspace, of.scheduler, of.stop)
        try:
            of.patience(_outcome(claim, context))
        except TakenOver as error:
            tell(error)
        _free_memory()

    def rest(self, idle_seconds: float) -> None:
        """Nothing runs between two jobs."""

    def close(self) -> None:
        """Nothing runs after the last job."""


def _outcome(claim: Claim, context: TaskContext) -> Callable[[], None]:
    """Do one job; returns what writes its end to the store. Raises TakenOver."""
    try:
        result = _result(claim.job, context).to_json()
    except TakenOver:
        raise
    except Released:
        return claim.release
    except Cancelled:
        return claim.cancel
    except DersError as error:
        return partial(claim.fail, str(error), traceback.format_exc())
    except Exception as error:
        return partial(claim.fail, _sentence(error, context), traceback.format_exc())
    except BaseException:
        claim.release()
        raise
    return partial(claim.complete, result)


def _result(job: Job, context: TaskContext) -> Result:
    """What a job comes to. Raises what its kind raises."""
    kind = _kind(job.kind)
    spec = kind.parse(job.spec)
    until = time.monotonic() + (BUSY_SECONDS if job.attempt > 1 else 0.0)
    while True:
        try:
            result: Result = kind.run(context, spec)
            return result
        except OutputBusy:
            if time.monotonic() >= until:
                raise
        context.progress(0, 0, "waiting until the process before this one has let go of the output")
        time.sleep(BUSY_PAUSE)


def _kind(name: str) -> Kind[Any, Any]:
    """Raises JobError for a kind that this worker's program does not have."""
    if name not in KINDS:
        raise JobError(
            f"this worker does not know the kind of job {name!r}; if the program was updated, "
            "restart the worker"
        )
    return KINDS[name]()


def _sentence(error: Exception, context: TaskContext) -> str:
    """The message for an unexpected error."""
    cause = system_error(error)
    if cause is not None:
        directory = context.workspace.run_dir(context.job.id)
        return str(write_error(cause, directory, "then resume this run"))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory for this; use fewer workers or the CPU, then resume"
    words = str(error).strip().split("\n", 1)[0]
    return f"unexpected: {type(error).__name__}: {words}; details in the log"


def _free_memory() -> None:
    """Release GPU memory until the next job."""
    gc.collect()
    torch = sys.modules.get("torch")  # None where it cannot be imported
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

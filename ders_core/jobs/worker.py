"""The worker process: does jobs one at a time, reports heartbeats, and outlives the app.

python -m ders_core.jobs.worker --workspace DIR [--scheduler ADDR]
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ders_core.errors import Cancelled, DersError, JobError
from ders_core.files.aside import sweep_asides
from ders_core.files.place_errors import system_error, write_error
from ders_core.files.scratch import sweep_scratch
from ders_core.jobs.claims import Claim, Claims, TakenOver
from ders_core.jobs.context import Released, TaskContext
from ders_core.jobs.heartbeat import Heartbeat
from ders_core.jobs.job import STALE_AFTER
from ders_core.jobs.kind import KINDS, Kind
from ders_core.jobs.patience import Leaving, Patience, tell
from ders_core.jobs.stop import stop_signals
from ders_core.jobs.workspace import Workspace

POLL = 0.4
"""Seconds between two checks of the queue."""

SLEPT = 5.0
"""If two checks of the queue are further apart than this, the machine slept, and no worker could
send a heartbeat."""

SETTLED = 15.0
"""Idle seconds after which a worker that has had no job yet imports torch, so that the first one
finds it there. Before, whoever started the worker needs the processors."""

LINGER = 30.0
"""Idle seconds after which a worker checks whether its companion still runs."""


def run_worker(
    workspace: Workspace,
    scheduler: str | None = None,
    *,
    stop_when_idle: bool = False,
    worker_id: str | None = None,
) -> None:
    """Work until SIGTERM or SIGINT, which put a running job back into the queue.

    scheduler: address of a dask scheduler whose workers do the per-group work. stop_when_idle:
    return when no job waits or runs. worker_id: the id under which the store announced this worker
    already; if it has a companion, return when that process has ended and no work is left. While
    the job store cannot be used, for a full disk or a lock that is held, the worker waits.
    Raises JobError if the store is damaged, of another version, or removed.
    """
    _sweep(workspace)
    with stop_signals() as stop, suppress(Leaving):
        patience = Patience(workspace, stop)
        claims = patience(lambda: Claims(workspace.store_path, worker_id or uuid.uuid4().hex))
        with Heartbeat(claims) as heart:
            patience(heart.beat)
            looked, useful = time.time(), time.monotonic()
            trusted = 0.0  # before this time, a missing heartbeat does not count

            def claim_next() -> Claim | None:
                nonlocal trusted
                now = time.time()
                if patience.waiting or not -SLEPT < now - looked < SLEPT:
                    trusted = now + STALE_AFTER
                return claims.claim(orphans=now >= trusted)

            while not stop.asked:
                claim = patience(claim_next)
                idle = time.monotonic() - useful
                if claim is None and not heart.devices and idle > SETTLED:
                    heart.devices = _devices()
                if claim is not None:
                    context = TaskContext(claim, workspace, scheduler, stop)
                    _work(claim, context, patience, heart)
                    heart.work_on(None)
                    _free_memory()
                    useful = time.monotonic()
                elif patience(partial(_may_leave, claims, stop_when_idle, useful)):
                    break
                else:
                    time.sleep(POLL)
                looked = time.time()


def _sweep(workspace: Workspace) -> None:
    """Remove what dead processes left in TMPDIR and in the workspace."""
    sweep_scratch()
    sweep_scratch(workspace.analyses, ".")
    for folder in (workspace.path, workspace.recipes):
        sweep_asides(folder)


def _may_leave(claims: Claims, stop_when_idle: bool, idle_since: float) -> bool:
    """Whether an idle worker stops: it was started for the present jobs, or its companion ended."""
    if stop_when_idle and not claims.pending():
        return True
    return time.monotonic() - idle_since > LINGER and claims.leave_without_companion()


def _work(claim: Claim, context: TaskContext, patience: Patience, heart: Heartbeat) -> None:
    """Do one job and write its end to the store, as soon as the store can be used."""
    try:
        end = _outcome(claim, context, heart)
        patience(end)
    except TakenOver as error:
        tell(error)


def _outcome(claim: Claim, context: TaskContext, heart: Heartbeat) -> Callable[[], None]:
    """Do one job; returns what writes its end to the store. Raises TakenOver."""
    try:
        if not heart.devices:
            heart.devices = _devices()
        heart.work_on(claim.job.id)
        kind = _kind(claim.job.kind)
        result = kind.run(context, kind.parse(claim.job.spec)).to_json()
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


def _devices() -> tuple[str, ...]:
    """The devices of this worker: "cpu", "cuda:0 NVIDIA H200"."""
    import torch

    if not torch.cuda.is_available():
        return ("cpu",)
    names = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    return ("cpu", *(f"cuda:{index} {name}" for index, name in enumerate(names)))


def _free_memory() -> None:
    """Release GPU memory while the worker is idle."""
    gc.collect()
    torch = sys.modules.get("torch")  # None where it cannot be imported
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """The process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ders_core.jobs.worker", description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, metavar="DIR")
    parser.add_argument("--scheduler", metavar="ADDR")
    parser.add_argument("--id", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with suppress(OSError, ValueError, RuntimeError):  # without a stderr of its own
        faulthandler.enable()  # a library that crashes leaves its place in the log
    try:
        run_worker(
            Workspace(options.workspace),
            options.scheduler,
            worker_id=options.id,
        )
    except DersError as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

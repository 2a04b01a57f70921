"""The worker process: has jobs done one at a time, reports heartbeats, and outlives the app.

python -m ders_core.jobs.worker --workspace DIR [--scheduler ADDR]
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from ders_core.errors import DersError
from ders_core.jobs.claims import Claim, Claims
from ders_core.jobs.heartbeat import Heartbeat
from ders_core.jobs.job import STALE_AFTER
from ders_core.jobs.job_process import InChildProcess
from ders_core.jobs.leftovers import sweep
from ders_core.jobs.patience import Leaving, Patience, tell
from ders_core.jobs.perform import InThisProcess, Setting
from ders_core.jobs.stop import stop_signals
from ders_core.jobs.workspace import Workspace

POLL = 0.4
"""Seconds between two checks of the queue."""

SLEPT = 5.0
"""If two checks of the queue are further apart than this, the machine slept, and no worker could
send a heartbeat."""

LINGER = 30.0
"""Idle seconds after which a worker checks whether its companion still runs."""


class Doer(Protocol):
    """What does the jobs that a worker claims. close: called at the end."""

    def do(self, claim: Claim) -> None:
        """Do one job, and see that its end is in the store."""

    def rest(self, idle_seconds: float) -> None:
        """Called again and again while no job waits."""

    def close(self) -> None: ...


def run_worker(
    workspace: Workspace,
    scheduler: str | None = None,
    *,
    stop_when_idle: bool = False,
    worker_id: str | None = None,
    doer: Callable[[Setting], Doer] = InThisProcess,
) -> None:
    """Work until SIGTERM or SIGINT, which put a running job back into the queue.

    scheduler: address of a dask scheduler whose workers do the per-group work. stop_when_idle:
    return when no job waits or runs. worker_id: the id under which the store announced this worker
    already; if it has a companion, return when that process has ended and no work is left. doer:
    where jobs are done, this process or a child of it. While the job store cannot be used, for a
    full disk or a lock that is held, the worker waits.
    Raises JobError if the store is damaged, of another version, or removed.
    """
    sweep(workspace)
    with stop_signals() as stop, suppress(Leaving):
        patience = Patience(workspace, stop)
        claims = patience(lambda: Claims(workspace.store_path, worker_id or uuid.uuid4().hex))
        with (
            Heartbeat(claims) as heart,
            closing(doer(Setting(workspace, scheduler, stop, patience))) as does,
        ):
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
                if claim is not None:
                    heart.work_on(claim.job.id)
                    does.do(claim)
                    heart.work_on(None)
                    useful = time.monotonic()
                elif patience(partial(_may_leave, claims, stop_when_idle, useful)):
                    break
                else:
                    does.rest(time.monotonic() - useful)
                    time.sleep(POLL)
                looked = time.time()


def _may_leave(claims: Claims, stop_when_idle: bool, idle_since: float) -> bool:
    """Whether an idle worker stops: it was started for the present jobs, or its companion ended."""
    if stop_when_idle and not claims.pending():
        return True
    return time.monotonic() - idle_since > LINGER and claims.leave_without_companion()


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
            doer=InChildProcess,
        )
    except DersError as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

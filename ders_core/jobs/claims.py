"""The job store for workers: claim a job, report its progress, end it or put it back.

A claim is identified by (job, attempt): each claim raises the attempt, and every report names its
attempt. A worker that seemed dead and lost its job to another worker gets TakenOver at its next
report, and stops.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.compute.oom import oom_kills
from ders_core.errors import Cancelled
from ders_core.jobs.deaths import Death, deaths_text
from ders_core.jobs.job import (
    STALE_AFTER,
    Job,
    Step,
    deaths_json,
    deaths_of,
    job_of,
    process_lives,
    rewound,
    steps_of,
    steps_text,
    stopped,
    worker_of,
)
from ders_core.jobs.pace import Sample
from ders_core.jobs.schema import connection, log_event, prepare, transaction

MAX_LOSSES = 3
"""A job that lost more workers than this fails: it is probably what kills them."""

ORPHANED = (
    "state = 'running' AND NOT EXISTS (SELECT 1 FROM workers WHERE workers.id = jobs.worker"
    " AND heartbeat >= :limit AND workers.id NOT IN (SELECT value FROM json_each(:dead)))"
)


class TakenOver(Cancelled):
    """Another worker has the job now; leave everything as it is."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, until another worker claims it."""

    path: Path
    job: Job

    def advance(
        self, step: str, done: int, total: int, message: str, samples: Sequence[Sample]
    ) -> bool:
        """Report the progress of a step. Returns whether a stop was requested. Raises TakenOver."""
        row = self._update(
            "step = :step, done = :done, total = :total, message = :message, samples = :samples",
            step=step,
            done=done,
            total=total,
            message=message,
            samples=json.dumps(samples),
        )
        return bool(row["cancel_requested"])

    def set_steps(self, steps: tuple[Step, ...]) -> None:
        """Raises TakenOver."""
        self._update("steps = :steps", steps=steps_text(steps))

    def set_device(self, device: str) -> None:
        """Raises TakenOver."""
        self._update("device = :device", device=device)

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the job's log. Raises TakenOver."""
        with transaction(self.path) as db:
            self._check(db)
            log_event(db, self.job.id, level, message)

    def complete(self, result: dict[str, Any]) -> None:
        self._end("done", "done", result=json.dumps(result))

    def fail(self, error: str, details: str = "") -> None:
        """error: a sentence for the user; details: a traceback for the log, or ""."""
        self._end("failed", "failed", error=error, details=details)

    def cancel(self) -> None:
        self._end("cancelled", "cancelled")

    def release(self) -> None:
        """Put the job back into the queue, because its process has to stop."""
        with transaction(self.path) as db:
            steps = steps_text(rewound(steps_of(self._check(db)["steps"])))
            db.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, steps = ?, samples = '[]',"
                " message = 'waiting for a worker to continue' WHERE id = ?",
                (steps, self.job.id),
            )
            log_event(db, self.job.id, "info", "put back: its process was asked to stop")

    def lose(self, death: Death) -> None:
        """Put the job back into the queue, because the process that did it died; fail it if that
        happened more than MAX_LOSSES times. Raises TakenOver."""
        with transaction(self.path) as db:
            row = self._check(db)
            deaths = [*deaths_of(row["deaths"]), death]
            if row["losses"] >= MAX_LOSSES:
                _give_up(db, row, deaths)
                return
            db.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, losses = losses + 1, deaths = ?,"
                " steps = ?, samples = '[]', message = 'waiting to continue' WHERE id = ?",
                (deaths_json(deaths), steps_text(rewound(steps_of(row["steps"]))), self.job.id),
            )
            log_event(db, self.job.id, "warning", f"its process died: {deaths_text([death])}")

    def _end(
        self,
        state: str,
        message: str,
        *,
        result: str | None = None,
        error: str | None = None,
        details: str = "",
    ) -> None:
        with transaction(self.path) as db:
            steps = steps_of(self._check(db)["steps"])
            if state != "done":
                steps = stopped(steps, "failed" if state == "failed" else "cancelled")
            db.execute(
                "UPDATE jobs SET state = ?, finished = ?, message = ?, result = ?, error = ?,"
                " worker = NULL, steps = ? WHERE id = ?",
                (state, time.time(), message, result, error, steps_text(steps), self.job.id),
            )
            if details:
                log_event(db, self.job.id, "debug", details)
            log_event(db, self.job.id, "error" if error else "info", error or message)

    def _update(self, assignments: str, **values: Any) -> sqlite3.Row:
        with connection(self.path) as db:
            rows: list[sqlite3.Row] = db.execute(
                f"UPDATE jobs SET {assignments} WHERE id = :id AND attempt = :attempt"
                " AND state = 'running' RETURNING *",
                {**values, "id": self.job.id, "attempt": self.job.attempt},
            ).fetchall()
        if not rows:
            raise self._taken_over()
        return rows[0]

    def _check(self, db: sqlite3.Connection) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute(
            "SELECT * FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'",
            (self.job.id, self.job.attempt),
        ).fetchone()
        if row is None:
            raise self._taken_over()
        return row

    def _taken_over(self) -> TakenOver:
        return TakenOver(f"job {self.job.id} was taken over by another worker, or removed")


class Claims:
    """The store for one worker. worker_id: unique to one process."""

    def __init__(self, path: Path, worker_id: str) -> None:
        self.path, self.worker_id = path, worker_id
        prepare(path)

    def beat(self, job_id: int | None, memory: int, cpu: float) -> None:
        """Report that this worker is alive. memory: bytes; cpu: percent of one core."""
        self.announce(os.getpid())
        with transaction(self.path) as db:
            db.execute(
                "UPDATE workers SET heartbeat = ?, job_id = ?, memory = ?, cpu = ?, oom_kills = ?"
                " WHERE id = ?",
                (time.time(), job_id, memory, cpu, oom_kills(), self.worker_id),
            )
            db.execute(
                "UPDATE jobs SET peak_memory = max(peak_memory, ?) WHERE id = ? AND worker = ?",
                (memory, job_id, self.worker_id),
            )

    def announce(self, pid: int, companion: int | None = None) -> None:
        """Enter the worker into the store, if it is not there."""
        now = time.time()
        with connection(self.path) as db:
            db.execute(
                "INSERT INTO workers (id, pid, host, started, heartbeat, companion)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (self.worker_id, pid, platform.node(), now, now, companion),
            )

    def note_end(self, status: int) -> None:
        """Note how the worker's process ended (`Death.status`)."""
        with connection(self.path) as db:
            db.execute("UPDATE workers SET ended = ? WHERE id = ?", (status, self.worker_id))

    def adopt(self, companion: int) -> bool:
        """Give the worker another companion. Returns False if the worker has left."""
        with connection(self.path) as db:
            rows = db.execute(
                "UPDATE workers SET companion = ? WHERE id = ? RETURNING id",
                (companion, self.worker_id),
            ).fetchall()
        return bool(rows)

    def leave_without_companion(self) -> bool:
        """Leave if the worker's companion has ended. Returns whether it left."""
        with transaction(self.path) as db:
            row = db.execute(
                "SELECT companion FROM workers WHERE id = ?", (self.worker_id,)
            ).fetchone()
            alone = row is not None and row[0] is not None and not process_lives(row[0])
            if alone:
                db.execute("DELETE FROM workers WHERE id = ?", (self.worker_id,))
        return alone

    def leave(self) -> None:
        """Remove the worker from the store."""
        with connection(self.path) as db:
            db.execute("DELETE FROM workers WHERE id = ?", (self.worker_id,))

    def claim(self, *, orphans: bool = True) -> Claim | None:
        """Claim the oldest free job, one that lost its worker first; None if there is none.

        orphans: whether a worker without recent heartbeats counts as dead. Not right after this
        machine slept, when no worker could report.
        """
        now = time.time()
        with transaction(self.path) as db:
            if orphans:
                dead = _bury(db, now)
                limit = now - STALE_AFTER
                _give_up_orphans(db, dead, limit)
            else:
                dead, limit = [], 0.0
            free: sqlite3.Row | None = db.execute(
                "SELECT * FROM jobs WHERE id = coalesce("
                f"(SELECT id FROM jobs WHERE {ORPHANED} ORDER BY id LIMIT 1),"
                " (SELECT id FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1))",
                {"limit": limit, "dead": json.dumps(dead)},
            ).fetchone()
            if free is None:
                return None
            lost = free["state"] == "running"
            deaths = _deaths(db, free) if lost else deaths_of(free["deaths"])
            rows = db.execute(
                "UPDATE jobs SET losses = losses + :lost, state = 'running', worker = :me,"
                " attempt = attempt + 1, started = :now, finished = NULL, error = NULL,"
                " samples = '[]', deaths = :deaths WHERE id = :id RETURNING *",
                {
                    "lost": lost,
                    "me": self.worker_id,
                    "now": now,
                    "deaths": deaths_json(deaths),
                    "id": free["id"],
                },
            ).fetchall()
            job = job_of(rows[0])
            steps = rewound(job.steps)
            db.execute("UPDATE jobs SET steps = ? WHERE id = ?", (steps_text(steps), job.id))
            if lost:
                log_event(db, job.id, "warning", f"its worker died: {deaths_text(deaths[-1:])}")
            if job.attempt > 1:
                log_event(db, job.id, "info", f"taken up again, attempt {job.attempt}")
            else:
                log_event(db, job.id, "info", "started")
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job.id,)).fetchone()
        return Claim(self.path, job_of(row))

    def pending(self) -> bool:
        """Whether any job waits or runs."""
        with connection(self.path) as db:
            row = db.execute(
                "SELECT 1 FROM jobs WHERE state IN ('queued', 'running') LIMIT 1"
            ).fetchone()
        return row is not None


def _bury(db: sqlite3.Connection, now: float) -> list[str]:
    """Ids of workers whose process has ended. Workers silent for an hour are removed."""
    db.execute("DELETE FROM workers WHERE heartbeat < ?", (now - 3600,))
    workers = [worker_of(row) for row in db.execute("SELECT * FROM workers").fetchall()]
    return [worker.id for worker in workers if worker.gone]


def _deaths(db: sqlite3.Connection, job: sqlite3.Row) -> list[Death]:
    """The deaths of all workers that a job lost, of one that is lost by now too."""
    row = db.execute("SELECT * FROM workers WHERE id = ?", (job["worker"],)).fetchone()
    death = Death()
    if row is not None:
        worker = worker_of(row)
        now = oom_kills() if worker.host == platform.node() else None
        told = None if now is None or worker.oom_kills is None else now > worker.oom_kills
        death = Death(worker.ended, told)
    return [*deaths_of(job["deaths"]), death]


def _give_up_orphans(db: sqlite3.Connection, dead: list[str], limit: float) -> None:
    """Fail the jobs that lost more than MAX_LOSSES workers."""
    rows = db.execute(
        f"SELECT * FROM jobs WHERE losses >= :most AND {ORPHANED}",
        {"most": MAX_LOSSES, "limit": limit, "dead": json.dumps(dead)},
    ).fetchall()
    for row in rows:
        _give_up(db, row, _deaths(db, row))


def _give_up(db: sqlite3.Connection, job: sqlite3.Row, deaths: list[Death]) -> None:
    """Fail a job, because its process, the worker or that beside it, died too often."""
    error = f"its process died {MAX_LOSSES + 1} times while it ran: {deaths_text(deaths)}"
    steps = steps_text(stopped(steps_of(job["steps"]), "failed"))
    db.execute(
        "UPDATE jobs SET state = 'failed', finished = ?, error = ?, message = 'failed',"
        " worker = NULL, steps = ? WHERE id = ?",
        (time.time(), error, steps, job["id"]),
    )
    log_event(db, job["id"], "error", error)

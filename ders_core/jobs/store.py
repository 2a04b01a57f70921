"""The job store for pages and the command line: file jobs, read, cancel, resume, delete them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ders_core.errors import JobError
from ders_core.files.output import bytes_below
from ders_core.jobs.job import (
    TAG_ENDS,
    Event,
    Job,
    JobState,
    Step,
    WorkerState,
    job_of,
    rewound,
    steps_of,
    steps_text,
    stopped,
    worker_of,
)
from ders_core.jobs.kind import KINDS
from ders_core.jobs.schema import connection, log_event, prepare, transaction
from ders_core.jobs.which import NAME, PAGE, SORTED, Order, Which
from ders_core.jobs.workspace import Workspace

LONGEST_TITLE = 200
LONGEST_NOTE = 10_000

Jobs = list[Job]  # JobStore.list hides the builtin within the class
Events = list[Event]
Workers = list[WorkerState]


class JobStore:
    """Jobs in a SQLite file. Every call opens a connection for one short transaction, so any number
    of threads and processes may use one store at once.

    Every method raises JobError if the file cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        prepare(self.path)

    def submit(
        self, kind: str, spec: dict[str, Any], title: str | None = None, *, filed_by: str = ""
    ) -> Job:
        """File a job. title: by default the one that the kind makes of the parameters. filed_by: as
        of `Job`.

        Raises JobError for an unknown kind or parameters that do not fit it.
        """
        job_kind = KINDS.find(kind)()
        parameters = job_kind.parse(spec)
        full = parameters.model_dump(mode="json")
        title = title if title is not None else job_kind.title(parameters)
        steps = tuple(Step(name) for name in job_kind.steps)
        with transaction(self.path) as db:
            row = db.execute(
                "INSERT INTO jobs (kind, title, spec, steps, created, filed_by)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING *",
                (kind, title, json.dumps(full), steps_text(steps), time.time(), filed_by),
            ).fetchall()[0]
            log_event(db, row["id"], "info", "filed")
        return job_of(row)

    def get(self, job_id: int) -> Job:
        """One job. Raises JobError if there is no such job."""
        with connection(self.path) as db:
            return job_of(_row(db, job_id))

    def list(self, states: Iterable[str] | None = None, kind: str | None = None) -> Jobs:
        """Jobs, the newest first, however many: a page takes `page`. states, kind: None for all."""
        kinds = None if kind is None else (kind,)
        return self.page(Which(kinds, None if states is None else tuple(states)), most=-1)

    def page(
        self, which: Which, order: Order = "newest", *, first: int = 0, most: int = PAGE
    ) -> Jobs:
        """At most `most` jobs, after the `first` ones in that order; no other is read."""
        condition, values = which.condition()
        with connection(self.path) as db:
            found = db.execute(
                f"SELECT id FROM jobs WHERE {condition} ORDER BY {SORTED[order]}"
                " LIMIT :most OFFSET :first",
                {**values, "most": most, "first": first},
            ).fetchall()
            ids = [row["id"] for row in found]
            rows = db.execute(
                "SELECT * FROM jobs WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(ids),),
            ).fetchall()
        jobs = {row["id"]: job_of(row) for row in rows}
        return [jobs[job_id] for job_id in ids if job_id in jobs]  # one may just be deleted

    def newest(self, which: Which) -> Job | None:
        """The newest of the jobs; None if there is none."""
        return next(iter(self.page(which, most=1)), None)

    def count(self, which: Which) -> int:
        """How many jobs there are."""
        condition, values = which.condition()
        with connection(self.path) as db:
            row = db.execute(f"SELECT count(*) FROM jobs WHERE {condition}", values).fetchone()
        return int(row[0])

    def counts(self, kind: str) -> dict[JobState, int]:
        """How many jobs of a kind are in each state; states without any are left out."""
        with connection(self.path) as db:
            rows = db.execute(
                "SELECT state, count(*) FROM jobs WHERE kind = ? GROUP BY state", (kind,)
            ).fetchall()
        return {row[0]: row[1] for row in rows}

    def free_name(self, kind: str, name: str) -> str:
        """A name that no job of a kind has as its parameter `name`; a number is added if one has
        it."""
        with connection(self.path) as db:

            def is_taken(number: int) -> bool:
                row = db.execute(
                    f"SELECT EXISTS (SELECT 1 FROM jobs WHERE kind = ? AND {NAME} = ?)",
                    (kind, _numbered(name, number)),
                ).fetchone()
                return bool(row[0])

            taken, free = 0, 1  # few looks, however many have the name
            while is_taken(free):
                taken, free = free, 2 * free
            while free - taken > 1:
                middle = (taken + free) // 2
                taken, free = (middle, free) if is_taken(middle) else (taken, middle)
        return _numbered(name, free)

    def events(self, job_id: int, after: int = 0, *, debug: bool = False) -> Events:
        """The job's log after line `after`, oldest first. debug: also lines for developers."""
        return self._events(job_id, after, debug, -1)

    def tail(self, job_id: int, lines: int = 100, *, debug: bool = False) -> Events:
        """The last lines of a job's log, oldest first."""
        return self._events(job_id, 0, debug, lines)

    def _events(self, job_id: int, after: int, debug: bool, limit: int) -> Events:
        with connection(self.path) as db:
            rows = db.execute(
                "SELECT seq, time, level, message FROM events WHERE job_id = ? AND seq > ?"
                " AND (? OR level <> 'debug') ORDER BY seq DESC LIMIT ?",
                (job_id, after, debug, limit),
            ).fetchall()
        return [Event(*row) for row in reversed(rows)]

    def cancel(self, job_id: int) -> Job:
        """Stop a job: at once if no worker has it, else at its next progress report. Finished work
        is kept for `resume`. Raises JobError if the job has already ended."""
        with transaction(self.path) as db:
            row = _row(db, job_id)
            if row["state"] not in ("queued", "running"):
                raise JobError(f"job {job_id} is already {row['state']}; there is nothing to stop")
            if row["state"] == "running" and _worker_lives(db, row["worker"]):
                db.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?", (job_id,))
                log_event(db, job_id, "info", "asked to stop")
            else:
                db.execute(
                    "UPDATE jobs SET state = 'cancelled', finished = ?, message = 'cancelled',"
                    " worker = NULL, cancel_requested = 1, steps = ? WHERE id = ?",
                    (
                        time.time(),
                        steps_text(stopped(steps_of(row["steps"]), "cancelled")),
                        job_id,
                    ),
                )
                log_event(db, job_id, "info", "cancelled")
            return job_of(_row(db, job_id))

    def resume(self, job_id: int, *, filed_by: str = "") -> Job:
        """Queue a failed or cancelled job again; it continues after its finished work. filed_by: as
        of `Job`.

        Raises JobError for a job in another state.
        """
        with transaction(self.path) as db:
            row = _row(db, job_id)
            if row["state"] not in ("failed", "cancelled"):
                raise JobError(
                    f"job {job_id} is {row['state']}; only a failed or cancelled job can continue"
                )
            db.execute(
                "UPDATE jobs SET state = 'queued', error = NULL, finished = NULL, started = NULL,"
                " done = 0, total = 0, message = '', step = '', samples = '[]', worker = NULL,"
                " cancel_requested = 0, losses = 0, deaths = '[]', steps = ?, filed_by = ?"
                " WHERE id = ?",
                (steps_text(rewound(steps_of(row["steps"]))), filed_by, job_id),
            )
            log_event(db, job_id, "info", "queued again")
            return job_of(_row(db, job_id))

    def describe(self, job_id: int, title: str, tags: Iterable[str] = (), note: str = "") -> Job:
        """Rename a job, and keep tags and a note with it. Blanks around words are taken away, and
        tags that are there twice.

        Raises JobError for a title that is empty, longer than `LONGEST_TITLE` or of several lines,
        a tag with a comma, and tags or a note that are too long.
        """
        name, text = title.strip(), note.strip()
        kept = list(dict.fromkeys(clean for tag in tags if (clean := " ".join(tag.split()))))
        if not name or len(name) > LONGEST_TITLE or not name.isprintable():
            raise JobError(f"a name is one line of 1 to {LONGEST_TITLE} characters; shorten it")
        if any("," in tag or not tag.isprintable() for tag in kept):
            raise JobError("a tag has no comma and no line end; part tags by commas")
        if max(len(text), len(TAG_ENDS.join(kept))) > LONGEST_NOTE:
            raise JobError(f"tags and notes have at most {LONGEST_NOTE} characters; shorten them")
        with transaction(self.path) as db:
            _row(db, job_id)
            db.execute(
                "UPDATE jobs SET title = ?, tags = ?, note = ? WHERE id = ?",
                (name, TAG_ENDS.join(kept), text, job_id),
            )
            return job_of(_row(db, job_id))

    def freed_bytes(self, job_id: int) -> int:
        """How many bytes of files `delete` would remove."""
        directory = Workspace(self.path.parent).run_dir(job_id)
        return bytes_below(directory) if directory.is_dir() else 0

    def delete(self, job_id: int) -> None:
        """Delete a job, its log and its directory in the workspace; exports stay.

        Raises JobError while a worker runs it.
        """
        with transaction(self.path) as db:
            row = _row(db, job_id)
            if row["state"] == "running" and _worker_lives(db, row["worker"]):
                raise JobError(f"job {job_id} is running; cancel it first")
            db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        workspace = Workspace(self.path.parent)
        directory = workspace.run_dir(job_id)
        if directory.is_dir() and directory.resolve() == directory:  # no link leads elsewhere
            shutil.rmtree(directory, ignore_errors=True)

    def workers(self) -> Workers:
        """Every worker that has not left, the one with the latest heartbeat first."""
        with connection(self.path) as db:
            rows = db.execute("SELECT * FROM workers ORDER BY heartbeat DESC").fetchall()
        return [worker_of(row) for row in rows]

    def worker(self) -> WorkerState | None:
        """The worker to show: a busy live one, else a live one, else the last one; None if none."""
        workers = self.workers()
        living = [worker for worker in workers if worker.alive]
        busy = [worker for worker in living if worker.job_id is not None]
        return next(iter([*busy, *living, *workers]), None)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} ({number})"


def _row(db: sqlite3.Connection, job_id: int) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobError(f"there is no job {job_id}")
    return row


def _worker_lives(db: sqlite3.Connection, worker_id: str | None) -> bool:
    row = db.execute("SELECT * FROM workers WHERE id = ?", (worker_id,)).fetchone()
    return row is not None and worker_of(row).alive

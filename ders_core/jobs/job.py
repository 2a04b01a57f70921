"""The values of the job store: jobs with their steps, log lines, workers."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import psutil

from ders_core.jobs.deaths import Death
from ders_core.jobs.pace import Sample, rate, seconds_left

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
StepState = Literal["waiting", "running", "done", "skipped", "failed", "cancelled"]

TAG_ENDS = ", "
"""What stands between two tags in the store; none holds a comma."""

STALE_AFTER = 15.0
"""Seconds without a heartbeat after which a worker counts as dead."""


@dataclass(frozen=True)
class Step:
    """One step of a job. seconds: how long it took, None until it ended; note: a sentence or ""."""

    name: str
    state: StepState = "waiting"
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Job:
    """One job at the moment it was read. Times are seconds since the epoch, memory is bytes.

    done, total and message belong to the current step. device: None until a worker chose it.
    result: JSON values; `Result.of` of the kind's result class reads them. tags, note: what a
    person wrote about it. filed_by: the name of the browser that filed it or last
    queued it again; "" of a command, and of a browser without a name.
    """

    id: int
    kind: str
    title: str
    spec: dict[str, Any]
    state: JobState
    done: int
    total: int
    message: str
    step: str
    steps: tuple[Step, ...]
    result: dict[str, Any] | None
    error: str | None
    created: float
    started: float | None
    finished: float | None
    attempt: int
    device: str | None
    cancel_requested: bool
    worker: str | None
    peak_memory: int
    samples: tuple[Sample, ...]
    tags: tuple[str, ...]
    note: str
    filed_by: str

    @property
    def seconds(self) -> float | None:
        """Duration of the last attempt so far; None before the first."""
        if self.started is None:
            return None
        return max(0.0, (self.finished or time.time()) - self.started)

    @property
    def fraction(self) -> float:
        """The current step's progress, 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    @property
    def rate(self) -> float | None:
        """Units of the current step per second; None if not running or too early to estimate."""
        return rate(self.samples, time.time()) if self.state == "running" else None

    @property
    def seconds_left(self) -> float | None:
        """Time left in the current step; None if not running or too early to estimate."""
        if self.state != "running":
            return None
        return seconds_left(self.samples, self.done, self.total, time.time())


@dataclass(frozen=True)
class Event:
    """One line of a job's log. level: "info", "warning", "error", or "debug" (for developers)."""

    seq: int
    time: float
    level: str
    message: str


@dataclass(frozen=True)
class WorkerState:
    """One worker at its last report. memory: resident bytes, cpu: percent of one core, both with
    children. companion: pid of the process that it serves; after its end an idle worker leaves.
    ended: the exit status of its process, if the one that started it saw that (as of `Death`).
    oom_kills: of `ders_core.compute.oom` at its last report."""

    id: str
    pid: int
    host: str
    started: float
    heartbeat: float
    job_id: int | None
    memory: int
    cpu: float
    companion: int | None
    ended: int | None = None
    oom_kills: int | None = None

    @property
    def gone(self) -> bool:
        """Whether its process has ended; only processes of this machine can be checked."""
        return self.host == platform.node() and not process_lives(self.pid)

    @property
    def alive(self) -> bool:
        return time.time() - self.heartbeat < STALE_AFTER and not self.gone


def process_lives(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    if pid == os.getpid():
        return True
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def job_of(row: sqlite3.Row) -> Job:
    """A row of the table `jobs`."""
    return Job(
        id=row["id"],
        kind=row["kind"],
        title=row["title"],
        spec=json.loads(row["spec"]),
        state=row["state"],
        done=row["done"],
        total=row["total"],
        message=row["message"],
        step=row["step"],
        steps=steps_of(row["steps"]),
        result=json.loads(row["result"]) if row["result"] is not None else None,
        error=row["error"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        attempt=row["attempt"],
        device=row["device"],
        cancel_requested=bool(row["cancel_requested"]),
        worker=row["worker"],
        peak_memory=row["peak_memory"],
        samples=tuple((float(when), int(done)) for when, done in json.loads(row["samples"])),
        tags=tuple(filter(None, row["tags"].split(TAG_ENDS))),
        note=row["note"],
        filed_by=row["filed_by"],
    )


def worker_of(row: sqlite3.Row) -> WorkerState:
    """A row of the table `workers`."""
    return WorkerState(**{field.name: row[field.name] for field in fields(WorkerState)})


def steps_of(text: str) -> tuple[Step, ...]:
    """Steps from JSON."""
    return tuple(Step(**step) for step in json.loads(text))


def steps_text(steps: tuple[Step, ...]) -> str:
    """Steps as JSON."""
    return json.dumps([vars(step) for step in steps])


def stopped(steps: tuple[Step, ...], state: StepState) -> tuple[Step, ...]:
    """Steps with the running one in another state."""
    return tuple(replace(step, state=state) if step.state == "running" else step for step in steps)


def rewound(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Steps at the start of a new attempt: finished ones stay done, the others wait."""
    return tuple(step if step.state == "done" else Step(step.name) for step in steps)


def deaths_of(text: str) -> list[Death]:
    """Deaths from JSON."""
    return [Death(status, starved) for status, starved in json.loads(text)]


def deaths_json(deaths: Sequence[Death]) -> str:
    """Deaths as JSON."""
    return json.dumps([(death.status, death.starved) for death in deaths])

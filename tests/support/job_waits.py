"""Wait for jobs of a running studio: for states, not for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from support.studio_process import Studio

from ders_core.jobs import Job

STILLNESS = 600.0
"""Seconds in which nothing moves, of a job or on a page, after which it counts as stuck.

A working job tells something about once a second; its longest silence, while libraries are
imported, lasts some seconds on an idle core."""


def is_done(job: Job) -> bool:
    return job.state == "done"


def wait_for_job(studio: Studio, kind: str, reached: Callable[[Job], bool] = is_done) -> Job:
    """Wait until the newest job of a kind has `reached` something, and return it.

    Waits as long as the job goes on. Raises AssertionError if the job failed or was cancelled, if
    it is done without reaching it, if the app or the worker has ended, or if nothing moves for
    `STILLNESS`.
    """
    seen: object = None
    moved = time.monotonic()
    while True:
        job = next(iter(studio.store.list(kind=kind)), None)
        if job is not None:
            if reached(job):
                return job
            assert job.state in ("queued", "running"), (
                f"the job {job.kind!r} is {job.state}: {job.error}\n{studio.worker_log()}"
            )
        studio.check_processes()
        signs = job and (job.id, job.state, job.attempt, job.step, job.done, job.message)
        if signs != seen:
            seen, moved = signs, time.monotonic()
        still = time.monotonic() - moved
        assert still < STILLNESS, f"nothing moved for {still:.0f} s, {kind!r}: {signs}"
        time.sleep(0.2)

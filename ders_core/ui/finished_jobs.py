"""Finished jobs that left a packed checkpoint, to choose one of."""

from __future__ import annotations

from contextlib import suppress

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.jobs.results import PackedResult, packed_result
from ders_core.ui import session
from ders_core.ui.job_pages import JobPage
from ders_core.units import bytes_text, share_text, shortened, visible

NAME = 60
"""Characters of a job's name in a list, so that its size can be read beside it."""

Finished = dict[int, tuple[Job, PackedResult]]


def finished_jobs(page: JobPage, chosen: int) -> Finished:
    """Of a page, and the one that is chosen already: id -> the finished jobs that wrote a packed
    checkpoint."""
    jobs = list(page.jobs)
    if chosen and chosen not in {job.id for job in jobs}:
        with suppress(DersError):  # it was deleted
            jobs.append(session.job_store().get(chosen))
    return {job.id: (job, result) for job in jobs if (result := packed_result(job))}


def of_other_versions(page: JobPage, done: str) -> str:
    """What to say where none of the jobs on a page can be chosen. done: what would be done with
    one, such as "exported"."""
    which, now = ("", "Start a new one.") if page.is_all else (" of this page", "Turn the page.")
    return f"No run{which} can be {done}: other versions wrote them. {now}"


def job_label(job: Job, result: PackedResult) -> str:
    """A job in a list to choose from: its name and size."""
    size, share = bytes_text(result.bytes_after), share_text(result.ratio)
    return f"{shortened(visible(job.title), NAME)} · {size} · {share} of original"

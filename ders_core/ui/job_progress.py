"""File jobs, and show one while it runs: title, state, bar, message, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ders_core.errors import DersError
from ders_core.jobs import Job, Which, ensure_worker
from ders_core.jobs.job import JobState
from ders_core.jobs.which import PAGE
from ders_core.ui import session
from ders_core.ui.browser_name import ELSEWHERE_HELP, browser_name, filed_where
from ders_core.ui.plain import plain, show_error, strong
from ders_core.units import duration_text

ACTIVE: tuple[JobState, ...] = ("queued", "running")
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
MESSAGE = 90
"""Characters of a message that fit into a line, so that nothing below it moves."""

WAITING_SHOWN = 5
"""Waiting jobs of a kind that a page shows besides the running ones."""
STATES = {
    "queued": ("waiting", "gray"),
    "running": ("running", "blue"),
    "done": ("done", "green"),
    "failed": ("failed", "red"),
    "cancelled": ("cancelled", "orange"),
}


def submit(kind: str, spec: dict[str, Any], title: str | None = None) -> Job:
    """File a job, and start a worker if none runs. Raises JobError as `JobStore.submit`."""
    job = session.job_store().submit(kind, spec, title, filed_by=browser_name())
    ensure_worker(session.workspace())
    return job


def time_left(job: Job) -> str:
    """The time left in the current step, as text; "" if it is not known, as at a step's end, whose
    last units may take longer than those before."""
    seconds = job.seconds_left if job.state == "running" else None
    return f"about {duration_text(seconds)} left" if seconds is not None and seconds >= 1 else ""


def ended_count(counts: Mapping[JobState, int]) -> int:
    """Of jobs by state, how many have ended."""
    return sum(counts.get(state, 0) for state in ENDED)


def active_jobs(kind: str, ended: int | None = None) -> list[Job]:
    """The running jobs of a kind and the next that wait, to be shown by a fragment; in words, how
    many more wait. ended: how many had ended when the page was drawn; if it is given, the page is
    drawn again once that changes."""
    store = session.job_store()
    counts = store.counts(kind)
    if ended not in (None, ended_count(counts)):
        st.rerun()
    running = _first(kind, "running", PAGE) if counts.get("running") else []
    waiting = _first(kind, "queued", WAITING_SHOWN) if counts.get("queued") else []
    more = counts.get("queued", 0) - len(waiting)
    if more > 0:
        st.caption(f"{more} more wait behind those that are shown.")
    return [*running, *waiting]


def _first(kind: str, state: JobState, most: int) -> list[Job]:
    return session.job_store().page(Which((kind,), (state,)), "oldest", most=most)


def job_panel(job: Job, stop: str = "Cancel") -> DeltaGenerator:
    """A bordered panel: title, state, bar, message, time left. stop: label of the cancel button.
    Returns the panel, for more about the job."""
    panel = st.container(border=True)
    with panel:
        word, colour = STATES[job.state]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(strong(job.title))
            st.badge(word, color=colour)  # type: ignore[arg-type]
            step = job.step if len(job.steps) > 1 and job.state == "running" else ""
            where = filed_where(job)
            if about := " · ".join(filter(None, (plain(step), where))):
                st.caption(about, help=ELSEWHERE_HELP if where else None)
        if job.state in ACTIVE:
            st.progress(job.fraction)
            with st.container(horizontal=True, vertical_alignment="center"):
                begins = "starting" if job.state == "running" else "waiting for the worker"
                words = (job.message or begins, time_left(job))
                line = " · ".join(filter(None, (plain(words[0], MESSAGE), words[1])))
                st.caption(line, width="stretch")  # the button stays at the right of it
                if st.button(stop, key=f"cancel_{job.id}", type="tertiary"):
                    session.job_store().cancel(job.id)
                    st.rerun()
        elif job.state in ("failed", "cancelled"):
            if job.error:
                show_error(job.error)
            resume_button(job, f"resume_{job.id}")
    return panel


def resume_button(job: Job, key: str) -> None:
    """A button that queues a failed or cancelled job again."""
    if st.button("Resume", key=key, help="Continues from what is finished."):
        try:
            session.job_store().resume(job.id, filed_by=browser_name())
            ensure_worker(session.workspace())
        except DersError as error:
            show_error(error)
        else:
            st.rerun()

"""Parts of a page about one job: its steps, its log, and a button that deletes it."""

from __future__ import annotations

import time

import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.ui import session
from ders_core.ui.plain import plain, show_error, strong
from ders_core.units import bytes_text, duration_text

MARKS = {"done": ":green[✓]", "running": ":blue[●]", "failed": ":red[✗]"}


def steps_line(job: Job) -> None:
    """The steps in a row, with their durations."""
    words = [
        f"{MARKS.get(step.state, ':gray[○]')} {plain(step.name)}"
        + (f" {duration_text(step.seconds)}" if step.seconds is not None else "")
        + (f" ({plain(step.note)})" if step.note else "")
        for step in job.steps
    ]
    if words:
        st.caption(" → ".join(words))


def log_tail(job: Job, most: int = 12) -> None:
    """The last lines of the log, in a folded expander."""
    with st.expander("Log", key=f"log_{job.id}"):
        lines = [
            f"{time.strftime('%H:%M:%S', time.localtime(event.time))}  {event.message}"
            for event in session.job_store().tail(job.id, most)
        ]
        st.code("\n".join(lines) or "nothing yet", language=None)


def delete_button(job: Job) -> None:
    """Deletes the job and its files after a confirmation."""
    if st.button("Delete", key=f"delete_{job.id}", type="tertiary"):
        _confirm_delete(job.id, job.title)


@st.dialog("Delete this?")
def _confirm_delete(job_id: int, title: str) -> None:
    freed = session.job_store().freed_bytes(job_id)
    files = (
        f"its files are removed, which frees {bytes_text(freed)}" if freed else "it has no files"
    )
    st.markdown(f"{strong(title)}: {files}. Its log is removed, too; exports stay.")
    if st.button("Delete", type="primary", key="really_delete"):
        try:
            session.job_store().delete(job_id)
        except DersError as error:
            show_error(error)
        else:
            st.rerun()

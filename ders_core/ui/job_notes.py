"""What a person writes about a job: its name, tags and a note."""

from __future__ import annotations

import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.jobs.job import TAG_ENDS
from ders_core.ui import kept, session
from ders_core.ui.closed_forms import form_expander
from ders_core.ui.plain import plain, show_error

_SAVED = "described"
"""The job that was described just now, so that its form closes."""


def written(job: Job) -> None:
    """Tags and note, if there are any; in a place of their own, so that what follows stays where it
    is, such as the form that closes."""
    with st.container():
        with st.container(horizontal=True):
            for tag in job.tags:
                st.badge(plain(tag), color="gray")
        for line in job.note.splitlines():
            st.caption(plain(line))


def describe_form(job: Job) -> None:
    """A form with the name, tags and note of a job, which closes when they are saved."""
    key = f"describe_{job.id}"
    if st.session_state.get(_SAVED) == job.id:
        del st.session_state[_SAVED]
        st.session_state[key] = False
    form = form_expander("Name and notes…", key=key)
    if form is None:
        return
    with form:
        title = kept.field(
            st.text_input,
            "Name",
            key=f"describe_name_{job.id}",
            start=job.title,
            draft_of=job.title,
        )
        tags = kept.field(
            st.text_input,
            "Tags",
            key=f"describe_tags_{job.id}",
            start=TAG_ENDS.join(job.tags),
            draft_of=TAG_ENDS.join(job.tags),
            placeholder="with commas between",
        )
        note = kept.field(
            st.text_area,
            "Note",
            key=f"describe_note_{job.id}",
            start=job.note,
            draft_of=job.note,
            height=110,
        )
        if st.button("Save", type="primary", key=f"describe_save_{job.id}"):
            try:
                session.job_store().describe(job.id, title, tags.split(","), note)
            except DersError as error:
                show_error(error)
            else:
                st.session_state[_SAVED] = job.id
                st.rerun()

"""Pilots from the Tune page: a form that files one, and the reports of those that are done."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.demo.result import CALIBRATION
from ders_core.errors import DersError, JobError
from ders_core.figures.pilot import pilot_html
from ders_core.jobs import Which
from ders_core.jobs.kinds.pilot import PilotResult
from ders_core.ui import kept, session
from ders_core.ui.form_popover import form_popover
from ders_core.ui.frame import demo_text
from ders_core.ui.job_progress import submit
from ders_core.ui.plain import plain, show_error
from ders_core.ui.text_field import checked_texts
from ders_core.ui.trust import trust_switch

KIND = "pilot"
_POPOVER = "tune_pilot"
_STARTED = "tune_pilot_started"


def pilot_popover(source: Checkpoint) -> None:
    """A form behind a button. Of the demo, its own text is filled in."""
    if st.session_state.pop(_STARTED, False):
        st.session_state[_POPOVER] = False
    form = form_popover("Pilot…", icon=":material/flight_takeoff:", key=_POPOVER)
    if form is None:
        return
    with form:
        st.markdown(
            "Tries three sizes that are predicted to be safe and an aggressive one: each is "
            "compressed, measured on a part of your text that the calibration never saw, and "
            "writes beside the original. The report is one page on which you can decide."
        )
        typed = kept.field(
            st.text_area,
            "Texts like those of your task",
            key="tune_pilot_texts",
            start=str(demo_text(CALIBRATION, source.path) or ""),
            of=source.path,
            placeholder="files or directories, one a line, perhaps as NAME=PATH",
            help="The first 60 % of each are calibrated on, the rest is measured on. With names, "
            "each is measured apart too.",
            height=90,
        )
        trusted = trust_switch(source, "tune_pilot_trust")
        started = st.button("Start a pilot", key="tune_pilot_start", type="primary")
    if not started:
        return
    try:
        texts = checked_texts(typed)
        if texts is None:
            st.error("Name a text: a file or a directory.")
            return
        spec = {"checkpoint": str(source.path), "text": texts, "trust_remote_code": trusted}
        submit(KIND, spec)
    except DersError as error:
        show_error(error)
    else:
        st.session_state[_STARTED] = True
        st.rerun()


def pilot_reports(source: Checkpoint) -> None:
    """The answer of each pilot of the open checkpoint, the newest first, and its report."""
    which = Which((KIND,), ("done",), checkpoint=str(source.path))
    for job in session.job_store().page(which):
        with suppress(JobError):  # written by another version
            result = PilotResult.of(job)
            assert result is not None, "the job is done"
            with st.container(horizontal=True, vertical_alignment="center"):
                st.download_button(
                    "Report",
                    data=partial(pilot_html, result.pilot),
                    file_name=f"pilot-{job.id}.html",
                    mime="text/html",
                    icon=":material/download:",
                    key=f"tune_report_{job.id}",
                    on_click="ignore",
                )
                st.caption(plain(f"{job.title}: {result.pilot.sentence}."))

"""Pages that stand alone, of what was measured of the open checkpoint: of pilots and of series."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import JobError
from ders_core.figures.pareto import pareto_html
from ders_core.figures.pilot import pilot_html
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.pilot import PilotResult
from ders_core.jobs.kinds.series import SeriesResult
from ders_core.ui import session
from ders_core.ui.plain import plain


def reports(source: Checkpoint) -> None:
    """What each pilot and each series of the open checkpoint found, the newest first, and its
    page."""
    which = Which(("pilot", "series"), ("done",), checkpoint=str(source.path))
    for job in session.job_store().page(which):
        with suppress(JobError):  # written by another version
            sentence, page = of_job(job)
            with st.container(horizontal=True, vertical_alignment="center"):
                st.download_button(
                    "Report",
                    data=page,
                    file_name=f"{job.kind}-{job.id}.html",
                    mime="text/html",
                    icon=":material/download:",
                    key=f"tune_report_{job.id}",
                    on_click="ignore",
                )
                st.caption(plain(f"{job.title}: {sentence}."), width="stretch")


def of_job(job: Job) -> tuple[str, Callable[[], str]]:
    """What it found, in a sentence without its full stop, and what makes the page."""
    if job.kind == "series":
        sizes = SeriesResult.of(job)
        assert sizes is not None, "the job is done"
        page = partial(pareto_html, sizes.series, job.title, sizes.bytes_before)
        return sizes.series.sentence, page
    result = PilotResult.of(job)
    assert result is not None, "the job is done"
    return result.pilot.sentence, partial(pilot_html, result.pilot)

"""The analysis of the open checkpoint: its tables, or the job that makes them."""

from __future__ import annotations

import streamlit as st

from ders_core.analysis import Analysis
from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.jobs import Job, Which
from ders_core.ui import reads, session
from ders_core.ui.job_progress import job_panel, submit
from ders_core.ui.plain import show_error


def _latest(source: Checkpoint) -> Job | None:
    which = Which(("analyze",), checkpoint=str(source.path))
    return session.job_store().newest(which)


def need_analysis(source: Checkpoint) -> Analysis:
    """The tables, of all layers or of those that are finished so far. Without any, show a button or
    the progress of the job, and stop the page; also if the checkpoint cannot be read."""
    try:
        finished = reads.analysis(source)
        if finished is not None:
            return finished
        growing = reads.growing_analysis(source)
    except DersError as error:
        show_error(error)
        st.stop()
    if growing is None:
        _waiting(source)
        st.stop()
    _growing(source, len(growing.groups))
    return growing


def analyse(source: Checkpoint, spectra: str = "curve") -> None:
    """File a job that analyses the checkpoint."""
    submit("analyze", {"checkpoint": str(source.path), "spectra": spectra, "layers": None})


@st.fragment(run_every=1.5)
def under_way(source: Checkpoint) -> None:
    """The panel of an analysis that will replace the tables on the page; redraws the page when it
    is done."""
    job = _latest(source)
    if job is not None and job.state in ("queued", "running"):
        st.session_state["analysis_under_way"] = job.id
        job_panel(job)
    elif st.session_state.pop("analysis_under_way", None) is not None:
        st.rerun()


@st.fragment(run_every=1.5)
def _growing(source: Checkpoint, shown: int) -> None:
    """The job's panel; redraws the page when another layer is finished."""
    growing = reads.growing_analysis(source)
    if reads.analysis(source) is not None or (growing and len(growing.groups) != shown):
        st.rerun()
    job = _latest(source)
    if growing is not None:
        layers = growing.meta["layers"]
        st.caption(
            f"What is shown is {len(layers) - growing.missing_layers} of {len(layers)} layers; "
            "the others appear as they are read."
        )
    if job is not None and job.state != "done":
        job_panel(job)
    elif st.button("Continue", help="Reads the layers that are missing."):
        analyse(source)
        st.rerun()


@st.fragment(run_every=1.5)
def _waiting(source: Checkpoint) -> None:
    job = _latest(source)
    finished = job is not None and job.state == "done" and reads.analysis(source) is not None
    if finished or reads.growing_analysis(source) is not None:
        st.rerun()
    if job is not None and job.state != "done":
        job_panel(job)
    if job is None or job.state in ("done", "failed", "cancelled"):
        with st.container(border=True):
            st.markdown(
                "**This checkpoint was not analysed yet.** The worker reads every expert: "
                "similarity, norms, singular values of the deltas, histograms. The first layers "
                "can be looked at while the others are read."
            )
            if st.button("Analyse", type="primary", key="analyse"):
                analyse(source)
                st.rerun()
    st.skeleton(height=360)

"""The analysis of the open checkpoint: its tables if they are there, else the way to get them."""

from __future__ import annotations

import streamlit as st

from ders_core.analysis import Analysis
from ders_core.checkpoint import Checkpoint
from ders_core.jobs import Job
from ders_core.ui import frame, reads, session
from ders_core.ui.progress import job_panel, submit


def _latest(source: Checkpoint) -> Job | None:
    path = str(source.path)
    jobs = session.job_store().list(kind="analyze")
    return next((job for job in jobs if job.spec.get("checkpoint") == path), None)


def need_analysis(source: Checkpoint) -> Analysis:
    """The finished tables; without them, offer to make them, show progress, and stop the page."""
    found = reads.analysis(source)
    if found is not None:
        return found
    _waiting(source)
    st.stop()


@st.fragment(run_every=1.5)
def _waiting(source: Checkpoint) -> None:
    job = _latest(source)
    if job is not None and job.state == "done" and reads.analysis(source) is not None:
        st.rerun()
    if job is not None and job.state != "done":
        job_panel(job)
    if job is None or job.state in ("done", "failed", "cancelled"):
        with st.container(border=True):
            st.markdown(
                "**This checkpoint was not analysed yet.** The worker reads every expert once: "
                "similarity, norms, singular values of the deltas, histograms."
            )
            if st.button("Analyse", type="primary", key="analyse"):
                submit(
                    "analyze",
                    {"checkpoint": str(source.path), "spectra": True, "layers": None},
                    f"Analyse {frame.label(source)}",
                )
                st.rerun()
    st.skeleton(height=360)

"""A button that downloads runs of one checkpoint as a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from ders_core.figures.decision import Candidate, CandidateGroup, decision_html
from ders_core.jobs import Job
from ders_core.jobs.kinds.run import Run, RunResult
from ders_core.ui import frame, reads, runs
from ders_core.ui.place_title import place_title


def report_button(jobs: Sequence[Job], key: str) -> None:
    """Offer the finished ones of these runs as one page; nothing if there are none, or if they are
    of several checkpoints. The analysis is on it while their checkpoint is the open one."""
    of_runs = [(job, runs.readable(job)) for job in jobs if job.kind == Run.name]
    finished = [(job, result) for job, result in of_runs if result is not None]
    originals = {str(job.spec.get("checkpoint", "")) for job, _ in finished}
    if len(originals) != 1:
        return
    (original,) = originals
    source = frame.opened_or_none()
    is_open = source is not None and str(source.path) == original
    analysis = reads.analysis(source) if source is not None and is_open else None
    candidates = [_candidate(job, result) for job, result in finished]
    name, nbytes = place_title(original), finished[0][1].bytes_before
    st.download_button(
        "Report",
        data=lambda: decision_html(name, nbytes, candidates, analysis),
        file_name="report.html",
        mime="text/html",
        key=key,
        type="tertiary",
        icon=":material/description:",
        on_click="ignore",
        help="One page that stands alone: sizes, what they cost, the recipes"
        + (", and how alike the experts are." if analysis is not None else "."),
    )


def _candidate(job: Job, result: RunResult) -> Candidate:
    entries = result.report.entries if result.report is not None else ()
    groups = [
        CandidateGroup(
            entry.layer,
            entry.projection,
            entry.codec,
            entry.rel_error_weight,
            entry.gain,
            entry.noise,
        )
        for entry in entries
    ]
    recipe = str(job.spec.get("recipe", ""))
    return Candidate(job.title, recipe, result.bytes_after, result.quality, result.outlook, groups)

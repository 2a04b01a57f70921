"""Repair a finished run: a form that files the job, and what became of it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ders_core.demo.result import CALIBRATION, HELD_OUT
from ders_core.errors import DersError
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.repair import RepairResult
from ders_core.jobs.results import PackedResult
from ders_core.pipeline.quality import KL
from ders_core.repair.settings import DEFAULT_TRAIN, TRAINABLE, RepairSettings
from ders_core.ui import kept, session
from ders_core.ui.closed_forms import form_expander
from ders_core.ui.frame import demo_text
from ders_core.ui.job_details import delete_button
from ders_core.ui.job_progress import ACTIVE, job_panel, submit
from ders_core.ui.plain import plain, show_error
from ders_core.ui.text_field import checked_paths
from ders_core.units import duration_text, listed

KIND = "repair"
ABOUT = (
    "Trains what is small in the packed checkpoint, so that it says of your text what the original "
    "says; codes stay, and so does the size unless gains are trained, which add a few bits a row "
    "and column. The result is kept only if it is better on text that the training never saw."
)
MOST_SHOWN = 3
_STARTED = "repair_started"
"""The run whose repair has just started, so that its form closes."""


def repair_form(job: Job, result: PackedResult) -> None:
    """The form, which closes when the repair has started. job: the run that made the packed
    checkpoint. Of the demo, its own texts are filled in."""
    model, key = Path(job.spec["checkpoint"]), f"repair_{job.id}"
    if st.session_state.get(_STARTED) == job.id:
        del st.session_state[_STARTED]
        st.session_state[key] = False
    form = form_expander("Repair…", icon=":material/healing:", key=key)
    if form is None:
        return
    with form:
        st.caption(ABOUT)
        texts = kept.field(
            st.text_area,
            "Texts to train on",
            key=f"repair_texts_{job.id}",
            start=_demo_text(CALIBRATION, model),
            placeholder="files or directories, one a line",
            help="UTF-8 text, .jsonl, or directories of such files: like the text that matters.",
            height=90,
        )
        heldout = kept.field(
            st.text_input,
            "Text to measure with",
            key=f"repair_heldout_{job.id}",
            start=_demo_text(HELD_OUT, model),
            placeholder="a file or directory; none: the last eighth of each text",
        )
        trained = kept.field(
            st.multiselect,
            "What is trained",
            key=f"repair_train_{job.id}",
            start=list(DEFAULT_TRAIN),
            options=list(TRAINABLE),
        )
        steps = kept.field(
            st.number_input,
            "Steps",
            key=f"repair_steps_{job.id}",
            start=RepairSettings().steps,
            min_value=1,
            max_value=100_000,
            step=50,
            help=f"Of {RepairSettings().batch} windows of {RepairSettings().window} tokens.",
        )
        if st.button("Repair", type="primary", key=f"repair_start_{job.id}"):
            _start(job, result, texts, heldout, trained, int(steps))


def _demo_text(name: str, model: Path) -> str:
    """A text of the demo as a field shows it; empty if the model is not one of the demo's."""
    return str(demo_text(name, model) or "")


def _start(
    job: Job, result: PackedResult, texts: str, heldout: str, trained: list[str], steps: int
) -> None:
    try:
        paths, measured = checked_paths(texts), checked_paths(heldout)
        if not paths:
            st.error("Name a text to train on: a file or a directory.")
            return
        settings = RepairSettings.of({"train": trained, "steps": steps})
        spec = {
            "checkpoint": result.packed,
            "original": job.spec["checkpoint"],
            "text": paths,
            "heldout": measured[0] if measured else None,
            "name": session.job_store().free_name(KIND, f"{job.title} repaired"),
            "train": list(settings.train),
            "steps": settings.steps,
            "device": job.spec.get("device", "auto"),
            "trust_remote_code": bool(job.spec.get("trust_remote_code")),
        }
        submit(KIND, spec)
    except DersError as error:
        show_error(error)
    else:
        st.session_state[_STARTED] = job.id
        st.rerun()


@st.fragment(run_every=1.5)
def repairs(result: PackedResult) -> None:
    """The newest repairs of a packed checkpoint: their panels, and what those that ended came
    to."""
    which = Which((KIND,), checkpoint=result.packed)
    for job in session.job_store().page(which, most=MOST_SHOWN):
        if job.state in (*ACTIVE, "failed", "cancelled"):
            job_panel(job)
            if job.state not in ACTIVE:
                delete_button(job)
            continue
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(_line(job))
            st.page_link("pages/export.py", label="Export", icon=":material/download:")
            delete_button(job)


def _line(job: Job) -> str:
    """What a finished repair came to."""
    try:
        result = RepairResult.of(job)
    except DersError as error:
        return plain(error)
    if result is None:
        return plain(job.title)
    repaired = result.repaired
    before, after = (
        f"{KL.text(each.mean)} ({KL.text(each.low)} to {KL.text(each.high)})"
        for each in (repaired.kl_before, repaired.kl_after)
    )
    took = f", {duration_text(job.seconds)}" if job.seconds is not None else ""
    words = (
        f"{job.title}: KL {before} → {after} nats a token on held-out text; trained "
        f"{listed([*repaired.trained])} in {repaired.steps} steps{took}"
    )
    return plain(words)

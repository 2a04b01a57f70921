"""A calibration of the open checkpoint, measured in the background, and what is known of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.calibrate import CalibrateResult
from ders_core.pipeline.calibration import Calibration
from ders_core.ui import kept, session
from ders_core.ui.closed_forms import form_popover
from ders_core.ui.job_progress import ACTIVE, job_panel, submit
from ders_core.ui.plain import plain, show_error
from ders_core.ui.text_field import checked_paths
from ders_core.ui.trust import trust_switch
from ders_core.units import listed

GRADIENTS = (
    "Measures also how much an error in each weight costs, by one backward pass of every window, "
    "which takes several times as long. Then steps can be smaller where errors cost more, the best "
    "gain is known, and KL is predicted before a run."
)
OTHERS = (
    "Measures attention, dense FFNs, always-on experts and embeddings too, with gradients: what an "
    "error in each of them costs, and their inputs, which make the file several times as large."
)
EACH_EXPERT = (
    "Keeps, with gradients, the inputs of each expert apart: a layer's part of the file is as many "
    "times as large as it has experts. Worth it where GPTQ or `rounding: compensated` codes "
    "experts, above all without a base."
)
DOMAIN = (
    "Predictions speak of text like that: of another language or domain KL may be much higher. "
    "Give several texts, a mixture of what the model is for."
)


def calibration_job(source: Checkpoint, use: Callable[[str], None]) -> None:
    """A form that files the job; then its panel, and a button that takes the file. use: called with
    the finished file's path."""
    form = form_popover("Measure one", icon=":material/ssid_chart:", key="calibration_form")
    if form is not None:
        with form:
            _form(source)
    _progress(source, use)


def calibration_texts(path: Path) -> None:
    """What a calibration was measured on, in one line; nothing if it cannot be opened here."""
    try:
        calibration = Calibration.open(session.workspace().check_allowed(path))
    except DersError:
        return
    read = f"Calibrated on {calibration.tokens} tokens"
    if calibration.texts:
        read += f" of {plain(listed(calibration.texts))}"
    gradients = "with" if calibration.has_gradients else "without"
    others = len(calibration.others.names)
    more = f" Other matrices: {others}." if others else ""
    more += " Inputs of each expert apart." if calibration.has_each else ""
    st.caption(f"{read}, {gradients} gradients.{more}{_unknown(calibration)}", help=DOMAIN)


def _unknown(calibration: Calibration) -> str:
    """What a prediction leaves out."""
    if not calibration.has_gradients or calibration.has_routers:
        return ""
    return (
        " Predicted KL leaves out what other choices of experts cost, which this file does not "
        "know: it is too low where KL is small."
    )


def _form(source: Checkpoint) -> None:
    texts = kept.field(
        st.text_area,
        "Texts",
        key="calibration_texts",
        start="",
        of=source.path,
        placeholder="files or directories, one a line",
        help="UTF-8 text, .jsonl, or directories of such files, not those that quality is "
        f"measured on. {DOMAIN}",
        height=90,
    )
    tokens = kept.field(
        st.number_input,
        "Tokens",
        key="calibration_tokens",
        start=8192,
        min_value=256,
        max_value=1_000_000,
        step=1024,
    )
    gradients = kept.field(
        st.toggle, "Gradients", key="calibration_gradients", start=False, help=GRADIENTS
    )
    others = kept.field(
        st.toggle, "Other matrices", key="calibration_others", start=False, help=OTHERS
    )
    each_expert = kept.field(
        st.toggle, "Each expert's inputs", key="calibration_each", start=False, help=EACH_EXPERT
    )
    trusted = trust_switch(source, "calibration_trust")
    if not st.button("Measure", key="calibration_start", type="primary"):
        return
    try:
        paths = checked_paths(texts)
        spec = {
            "checkpoint": str(source.path),
            "text": paths,
            "max_tokens": int(tokens),
            "gradients": gradients,
            "others": others,
            "each_expert": each_expert,
            "trust_remote_code": trusted,
        }
        if not paths:
            st.error("Name a text to calibrate on: a file or a directory.")
            return
        submit("calibrate", spec)
    except DersError as error:
        show_error(error)
    else:
        st.rerun()


def _latest(source: Checkpoint) -> Job | None:
    which = Which(("calibrate",), checkpoint=str(source.path))
    return session.job_store().newest(which)


@st.fragment(run_every=1.5)
def _progress(source: Checkpoint, use: Callable[[str], None]) -> None:
    """The newest job of this checkpoint, until its file is used or another one is chosen."""
    job = _latest(source)
    if job is None or st.session_state.get("calibration_used") == job.id:
        return
    if job.state in (*ACTIVE, "failed"):
        job_panel(job)
        return
    result = CalibrateResult.of(job)
    if result is not None:
        label = f"Use the calibration of {result.tokens} tokens"
        if st.button(label, key="calibration_use", icon=":material/check:"):
            try:
                use(result.path)
            except DersError as error:
                st.session_state["recipe_error"] = str(error)
            else:
                st.session_state["calibration_used"] = job.id
            st.rerun()

"""The form that files a tuning, and its panel while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.demo.result import CALIBRATION
from ders_core.errors import DersError
from ders_core.jobs import Which
from ders_core.tune.constraints import check_selecting
from ders_core.tune.units import units_of
from ders_core.ui import kept, session
from ders_core.ui.calibration_job import DOMAIN
from ders_core.ui.closed_forms import form_expander
from ders_core.ui.frame import demo_text
from ders_core.ui.job_progress import ACTIVE, job_panel, submit
from ders_core.ui.plain import plain, show_error
from ders_core.ui.text_field import checked_paths
from ders_core.ui.trust import trust_switch
from ders_core.ui.tune.bound_fields import bound_fields, checked_bound, typed_bound
from ders_core.ui.tune.fields import text_lines, token_count
from ders_core.ui.tune.known import Known
from ders_core.ui.tune.wish import typed_wish, wish_fields

KIND = "tune"
MEASURING = ("prove", "series", "pilot")
"""Kinds that measure what was tuned."""

MEASURE = "measure one on the texts"
_RUNNING = "tune_running"
_FORM = "tune_again"
_STARTED = "tune_started"
"""Whether a tuning has just been filed, so that its form closes."""


def tune_again(source: Checkpoint, calibrations: Sequence[Known], *, is_running: bool) -> None:
    """The form, closed at first. is_running: as of `tune_form`."""
    if st.session_state.pop(_STARTED, False):
        st.session_state[_FORM] = False
    form = form_expander("Tune with another text", icon=":material/tune:", key=_FORM)
    if form is not None:
        with form:
            tune_form(source, calibrations, is_running=is_running)
            st.caption("Layers that are kept, pins and floors are those below the slider.")


def tune_form(
    source: Checkpoint,
    calibrations: Sequence[Known],
    layers: Sequence[int] = (),
    *,
    is_running: bool,
) -> None:
    """Texts or a calibration, a budget, and the button. Of the demo, its own text is filled in.
    layers: that can be kept as they are; without any, the fields of what is kept, pinned or has a
    floor stand elsewhere on the page. is_running: whether a tuning is filed or under way, which a
    second press must not file again."""
    labels = {f"{each.label} ({each.calibration.path})": each for each in calibrations}
    chosen = None
    if labels:
        chosen = kept.field(
            st.selectbox,
            "Calibration",
            key="tune_calibration",
            start=MEASURE,
            of=source.path,
            options=[MEASURE, *labels],
            help="With gradients, and of other matrices too if they are to be coded: what the "
            "calibration does not know loses nothing.",
        )
    calibration = labels.get(chosen or MEASURE)
    texts, tokens, trusted = "", 0, False
    if calibration is None:
        texts = text_lines(
            source,
            "Texts",
            "tune_texts",
            start=str(demo_text(CALIBRATION, source.path) or ""),
            placeholder="files or directories, one a line",
            help="UTF-8 text, .jsonl, or directories of such files, not those that quality is "
            f"measured on. {DOMAIN}",
        )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        bound_fields()
        if calibration is None:
            tokens = token_count("Tokens", "tune_tokens", 12288)
    if calibration is None:
        trusted = trust_switch(source, "tune_trust")
    if layers:
        with st.container(horizontal=True):
            wish_fields(source, layers)
    if not st.button(
        "Tune", key="tune_start", type="primary", icon=":material/tune:", disabled=is_running
    ):
        return
    try:
        bound, wish = typed_bound(), typed_wish(source)
        checked_bound(bound)
        check_selecting(wish.constraints, units_of(source))
        spec = {"checkpoint": str(source.path), **bound, **wish.fields}
        if calibration is not None:
            spec_of_known = {"calibration": str(calibration.calibration.path)}
            submit(KIND, spec | spec_of_known)
        else:
            paths = checked_paths(texts)
            if not paths:
                st.error("Name a text to calibrate on: a file or a directory.")
                return
            made = {"text": paths, "max_tokens": tokens, "trust_remote_code": trusted}
            submit(KIND, spec | made)
    except DersError as error:
        show_error(error)
    else:
        st.session_state[_STARTED] = True
        st.rerun()


@st.fragment(run_every=1.5)
def under_way(source: Checkpoint, kinds: tuple[str, ...] = (KIND,)) -> bool:
    """The panel of the newest job of these kinds until it is done; the page is drawn again then.
    Whether it is filed or under way."""
    job = session.job_store().newest(Which(kinds, checkpoint=str(source.path)))
    if job is None:
        return False
    running = f"{_RUNNING}_{kinds[0]}"
    if job.state in ACTIVE:
        st.session_state[running] = job.id
    elif st.session_state.pop(running, None) == job.id:
        st.rerun()
    if job.state != "done":
        job_panel(job)
    return job.state in ACTIVE


def about_scores(known: Known) -> None:
    """What the scores rest on, in one line, and what they do not know."""
    scores = known.scores
    assert scores is not None, "it was scored with"
    words = [
        f"Predicted from {known.label}, for text like that. Measured points are of the text "
        "of their run."
    ]
    words += [f"{each.sentence[0].upper()}{each.sentence[1:]}." for each in scores.rare]
    if scores.unmeasured:
        words.append(
            f"{len(scores.unmeasured)} matrices were not measured, and lose nothing: "
            "calibrate with other matrices to code them."
        )
    st.caption(plain(" ".join(words)), help=DOMAIN)

"""A pilot from the Tune page: a form that files one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.compute.device import available_devices
from ders_core.demo.result import CALIBRATION
from ders_core.errors import DersError
from ders_core.ui import kept
from ders_core.ui.closed_forms import form_expander
from ders_core.ui.frame import demo_text
from ders_core.ui.job_progress import submit
from ders_core.ui.plain import show_error
from ders_core.ui.text_field import checked_texts
from ders_core.ui.trust import trust_switch
from ders_core.ui.tune.fields import NAMED_TEXTS, friendly_toggle, text_lines, token_count

KIND = "pilot"
_FORM = "tune_pilot"
_STARTED = "tune_pilot_started"


def pilot_form(source: Checkpoint) -> None:
    """A form, closed at first. Of the demo, its own text is filled in."""
    if st.session_state.pop(_STARTED, False):
        st.session_state[_FORM] = False
    form = form_expander(
        "Pilot: try some sizes, measure them, decide", icon=":material/flight_takeoff:", key=_FORM
    )
    if form is None:
        return
    with form:
        st.markdown(
            "Tries three sizes that are predicted to be safe and an aggressive one: each is "
            "compressed, measured on a part of your text that the calibration never saw, and "
            "writes beside the original. The report is one page on which you can decide."
        )
        wish = _wish(source)
        started = st.button("Start a pilot", key="tune_pilot_start", type="primary")
    if not started:
        return
    try:
        spec = wish.spec(source)
        if spec is None:
            st.error("Name a text: a file or a directory.")
            return
        submit(KIND, spec)
    except DersError as error:
        show_error(error)
    else:
        st.session_state[_STARTED] = True
        st.rerun()


@dataclass(frozen=True)
class _Wish:
    """Fields of the form, as they were typed. prompts: one a line."""

    texts: str
    heldout: str
    prompts: str
    tokens: int
    max_tokens: int
    friendly: bool
    device: str
    trusted: bool

    def spec(self, source: Checkpoint) -> dict[str, Any] | None:
        """Of the job; None without any text. Raises as `checked_texts`."""
        texts = checked_texts(self.texts)
        if texts is None:
            return None
        return {
            "checkpoint": str(source.path),
            "text": texts,
            "heldout": checked_texts(self.heldout) or (),
            "prompts": [line for line in self.prompts.split("\n") if line.strip()],
            "tokens": self.tokens,
            "max_tokens": self.max_tokens,
            "friendly": self.friendly,
            "device": self.device,
            "trust_remote_code": self.trusted,
        }


def _wish(source: Checkpoint) -> _Wish:
    texts = text_lines(
        source,
        "Texts like those of your task",
        "tune_pilot_texts",
        start=str(demo_text(CALIBRATION, source.path) or ""),
        placeholder=NAMED_TEXTS,
        help="The first 60 % of each are calibrated on, the rest is measured on. With names, "
        "each is measured apart too.",
    )
    heldout = text_lines(
        source,
        "Other texts to measure on",
        "tune_pilot_heldout",
        placeholder=f"none, or {NAMED_TEXTS}",
        help="If there are any, all of the texts above is calibrated on, and these alone are "
        "measured on.",
    )
    prompts = text_lines(
        source,
        "Prompts",
        "tune_pilot_prompts",
        placeholder="none, or one a line",
        help="What the original and each size go on with; without any, beginnings of the texts "
        "that are measured on.",
    )
    with st.container(horizontal=True):
        tokens = token_count("Tokens to calibrate on", "tune_pilot_tokens", 12288)
        max_tokens = token_count("Tokens to measure on", "tune_pilot_max_tokens", 8192)
        device = kept.field(
            st.selectbox,
            "Device",
            key="tune_pilot_device",
            start="auto",
            options=["auto", *available_devices()],
            width=120,
        )
    friendly = friendly_toggle("tune_pilot_friendly")
    trusted = trust_switch(source, "tune_pilot_trust")
    return _Wish(texts, heldout, prompts, tokens, max_tokens, friendly, device, trusted)

"""The form that asks both models, and the questions that are under way."""

from __future__ import annotations

import streamlit as st

from ders_core.compute.device import available_devices
from ders_core.errors import DersError
from ders_core.pipeline.replies import MOST_TEMPERATURE, MOST_TOKENS
from ders_core.ui import kept, reads
from ders_core.ui.job_progress import active_jobs, job_panel, submit
from ders_core.ui.plain import show_error
from ders_core.ui.playground.pair import Pair, checked, choose_pair
from ders_core.ui.playground.shown import show_next
from ders_core.ui.trust import trust_switch

KIND = "ask"
ABOUT_CHANCE = (
    "0: each token is the most likely one. Above: tokens are drawn by chance, with the same chance "
    "for both models, so that they differ only where their predictions do."
)


def ask_form() -> None:
    """Which models, what they are asked, and the button."""
    with st.container(border=True):
        pair = choose_pair()
        prompt = kept.field(
            st.text_area,
            "Prompt",
            key="ask_prompt",
            start="",
            placeholder="the beginning of a text, which both models continue",
            height=110,
        )
        columns = st.columns([2, 2, 2, 2, 4], vertical_alignment="bottom")
        tokens = kept.field(
            columns[0].number_input,
            "Tokens",
            key="ask_tokens",
            start=64,
            min_value=1,
            max_value=MOST_TOKENS,
            step=16,
            help="The longest reply. A model may end before.",
        )
        temperature = kept.field(
            columns[1].number_input,
            "Temperature",
            key="ask_temperature",
            start=0.0,
            min_value=0.0,
            max_value=MOST_TEMPERATURE,
            step=0.1,
            help=ABOUT_CHANCE,
        )
        seed = kept.field(
            columns[2].number_input,
            "Seed",
            key="ask_seed",
            start=0,
            min_value=0,
            max_value=1_000_000,
            step=1,
            disabled=not temperature,
            help="Of chance: the same seed gives the same replies.",
        )
        device = kept.field(
            columns[3].selectbox,
            "Device",
            key="ask_device",
            start="auto",
            options=["auto", *available_devices()],
            help="auto: the GPU where there is one.",
        )
        chat = kept.field(
            columns[4].toggle,
            "As a chat message",
            key="ask_chat",
            start=False,
            help="Writes the prompt by the chat template that comes with the original's tokenizer.",
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            asked = st.button("Ask both", type="primary", key="ask_start")
            trusted = _trusted(pair)
    if not asked:
        return
    try:
        if not prompt.strip():
            raise DersError("write a prompt: the beginning of a text")
        paths = checked(pair)
        spec = {
            "packed": paths.packed,
            "original": paths.original,
            "name": paths.name,
            "prompt": prompt,
            "max_tokens": int(tokens),
            "temperature": float(temperature),
            "seed": int(seed),
            "chat": chat,
            "device": device,
            "trust_remote_code": trusted,
        }
        show_next(submit(KIND, spec))
    except DersError as error:
        show_error(error)
    else:
        st.rerun()


def _trusted(pair: Pair) -> bool:
    """Whether code of the models may run; asked of an original that can be opened."""
    try:
        source = reads.checkpoint(pair.original)
    except DersError:
        return False
    return trust_switch(source, "ask_trust")


@st.fragment(run_every=1.5)
def under_way(ended: int) -> None:
    """Questions that wait or run. ended: as of `active_jobs`."""
    for job in active_jobs(KIND, ended):
        job_panel(job)

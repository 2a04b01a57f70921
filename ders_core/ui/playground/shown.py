"""The replies to a prompt, side by side."""

from __future__ import annotations

import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.ask import AskResult
from ders_core.jobs.workspace import place_label
from ders_core.later import pd
from ders_core.pipeline.quality import KL
from ders_core.ui import kept, session
from ders_core.ui.job_details import delete_button
from ders_core.ui.job_progress import ENDED, STATES, job_panel
from ders_core.ui.number_columns import figure_column, number_column
from ders_core.ui.plain import answer_first, plain
from ders_core.ui.playground.marked import marked
from ders_core.ui.plots import csv_button
from ders_core.units import duration_text, visible

SHOWN = "ask_shown"
_NEXT = "ask_next"
"""The question that was filed last: it is shown once it has ended."""

NOBODY = (
    "Nothing was asked yet. Choose a compressed model, write the beginning of a text, and both "
    "continue it: tokens on which they disagree are marked."
)


def show_next(job: Job) -> None:
    """Show this question as soon as it has ended."""
    st.session_state[_NEXT] = job.id


def shown_replies() -> None:
    """The newest question that has ended, or another one that is chosen; how to ask, where nothing
    was asked."""
    store = session.job_store()
    jobs = {job.id: job for job in store.page(Which(("ask",), ENDED))}
    if not jobs:
        if not store.count(Which(("ask",))):
            st.info(NOBODY)
        return
    if st.session_state.get(_NEXT) in jobs:
        kept.put({SHOWN: st.session_state.pop(_NEXT)})
    chosen = kept.field(
        st.selectbox,
        "Asked",
        key=SHOWN,
        address="asked",
        start=next(iter(jobs)),
        options=list(jobs),
        format_func=lambda job_id: _label(jobs[job_id]),
    )
    job = jobs[chosen]
    try:
        result = AskResult.of(job)
    except DersError as error:
        st.error(plain(error))
        result = None
    if result is None:
        job_panel(job)
    else:
        _replies(job, result)
    delete_button(job)


def _label(job: Job) -> str:
    """The prompt, and of which model."""
    prompt = visible(job.title.removeprefix("Ask: "))
    state = "" if job.state == "done" else f" · {STATES[job.state][0]}"
    return f"{prompt} · {visible(job.spec.get('name') or place_label(job.spec['packed']))}{state}"


def _replies(job: Job, result: AskResult) -> None:
    st.markdown(answer_first(result.sentence))
    columns = st.columns(2)
    for column, title, reply, other in (
        (columns[0], "Original", result.original, "the compressed model"),
        (columns[1], "Compressed", result.compressed, "the original"),
    ):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{title}**")
            st.html(marked(reply, other))
            end = "came to its end" if reply.ended else "stopped by the number of tokens"
            st.caption(f"{len(reply.tokens)} tokens, {end}; {reply.differences} marked")
    st.caption(
        "A marked token: after the same text, the other model says another one. Rest the pointer "
        "on it, or see the table."
    )
    _differences(result)
    _setting(job, result)
    words = "Every token of both replies with its probabilities."
    csv_button(pd.DataFrame(result.rows()), "replies", words)


def _differences(result: AskResult) -> None:
    """A row for each marked token."""
    rows = [row for row in result.rows() if row["other"] is not None]
    if not rows:
        return
    table = pd.DataFrame(rows)
    shown = table.assign(
        text=table["text"].map(visible),
        other=table["other"].map(visible),
        chance=100 * table["chance"],
        other_chance=100 * table["other_chance"],
    )
    st.dataframe(
        shown,
        hide_index=True,
        column_order=["reply", "token", "text", "chance", "other", "other_chance", "kl"],
        column_config={
            "reply": st.column_config.TextColumn("in the reply of"),
            "token": st.column_config.NumberColumn("token", format="%d"),
            "text": st.column_config.TextColumn("it says"),
            "chance": number_column("its chance", shown["chance"], "%.3g %%"),
            "other": st.column_config.TextColumn("the other says"),
            "other_chance": number_column(
                "chance by the other",
                shown["other_chance"],
                "%.3g %%",
                help="The other model's probability of the token in *it says*.",
            ),
            "kl": figure_column(KL, shown),
        },
    )


def _setting(job: Job, result: AskResult) -> None:
    """What was asked of which models, and how it was computed."""
    how = "the most likely token each time"
    if result.seed is not None:
        how = f"temperature {result.temperature:g}, seed {result.seed}"
    with st.expander("Prompt and setting", key=f"asked_{job.id}"):
        st.code(result.prompt, language=None, wrap_lines=True)
        words = (
            f"{result.prompt_tokens} tokens; {how}; {result.dtype} on {result.device}; took "
            f"{duration_text(result.seconds)}; {job.spec['packed']} against {job.spec['original']}"
        )
        st.caption(plain(words))

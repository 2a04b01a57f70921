"""Answers side by side: what several runs and their original say to the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.compare import (
    MOST_MODELS,
    MOST_PROMPTS,
    MOST_TOKENS,
    Compare,
    CompareResult,
    CompareSpec,
)
from ders_core.later import pd
from ders_core.pipeline.replies import Replies
from ders_core.ui import kept, reads, runs, session
from ders_core.ui.job_details import delete_button
from ders_core.ui.job_progress import ENDED, active_jobs, ended_count, job_panel, submit
from ders_core.ui.plain import plain, show_error, strong
from ders_core.ui.playground.marked import marked, unmarked
from ders_core.ui.plots import csv_button
from ders_core.units import in_one_line, number_text, visible

KIND = Compare.name
A_ROW = 3
"""Columns beside one another."""


def answers(jobs: Sequence[Job]) -> None:
    """The form that asks, and what these runs and their original said to the same prompts. Nothing
    unless all are finished runs of one original on this machine."""
    results = [(job, runs.readable(job)) for job in jobs]
    forms = {job.id: (job, result) for job, result in results if result is not None}
    originals = {str(job.spec.get("checkpoint", "")) for job, _ in forms.values()}
    if len(originals) != 1 or is_address(next(iter(originals))):
        return
    chosen = list(forms.values())[:MOST_MODELS]
    models = [{"name": job.title, "packed": result.packed} for job, result in chosen]
    st.markdown("### Answers side by side")
    _form(next(iter(originals)), models, [job for job, _ in chosen])
    if len(forms) > len(chosen):
        st.caption(f"Of the runs above, the first {MOST_MODELS} are asked; select others.")
    _under_way(ended_count(session.job_store().counts(KIND)))
    _shown([model["packed"] for model in models])


def _form(original: str, models: list[dict[str, str]], jobs: list[Job]) -> None:
    columns = st.columns([6, 1, 1], vertical_alignment="bottom")
    prompts = kept.field(
        columns[0].text_area,
        "Prompts",
        key="answers_prompts",
        start="",
        placeholder=f"beginnings of texts, one a line, {MOST_PROMPTS} at most",
        height=90,
    )
    tokens = kept.field(
        columns[1].number_input,
        "Tokens each",
        key="answers_tokens",
        start=48,
        min_value=1,
        max_value=MOST_TOKENS,
        step=16,
    )
    count = "the run" if len(models) == 1 else f"{len(models)} runs"
    if not columns[2].button(f"Ask {count}", key="answers_start", width="stretch"):
        return
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    spec = {
        "original": original,
        "models": models,
        "prompts": lines,
        "max_tokens": int(tokens),
        "device": jobs[0].spec.get("device", "auto"),
        "trust_remote_code": any(bool(job.spec.get("trust_remote_code")) for job in jobs),
    }
    try:
        if not lines:
            raise DersError("write a prompt: the beginning of a text")
        if len(lines) > MOST_PROMPTS:
            raise DersError(f"{len(lines)} prompts are too many; give {MOST_PROMPTS} at most")
        known = _asked_before(Compare().parse(spec))
        if known is None:
            submit(KIND, spec)
        else:
            kept.put({"answers_shown": known.id})
    except DersError as error:
        show_error(error)
    else:
        st.rerun()


def _asked_before(spec: CompareSpec) -> Job | None:
    """A comparison that ended with the same question to the same checkpoints, as they are now."""
    for job in _done():
        with suppress(DersError):  # another version wrote it
            if _is_same(Compare().parse(job.spec), spec) and _is_current(_result(job)):
                return job
    return None


def _is_current(result: CompareResult) -> bool:
    """Whether the checkpoints that were asked are still there, as they were."""
    try:
        return all(
            reads.checkpoint(place).identity == identity
            for place, identity in result.identities.items()
        )
    except DersError:  # it is gone, or damaged
        return False


def _is_same(one: CompareSpec, other: CompareSpec) -> bool:
    """Whether two specs ask the same, whatever the runs are called now."""
    ignored = {"models": {"__all__": {"name"}}}
    return one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)


def _done() -> Sequence[Job]:
    return session.job_store().page(Which((KIND,), ("done",)))


def _result(job: Job) -> CompareResult:
    """What a finished comparison found. Raises JobError if another version wrote it."""
    result = CompareResult.of(job)
    assert result is not None, "the job is done"
    return result


@st.fragment(run_every=1.5)
def _under_way(ended: int) -> None:
    """Comparisons that wait or run, and the newest if it failed. ended: as of `active_jobs`."""
    newest = session.job_store().page(Which((KIND,), ENDED), most=1)
    failed = [job for job in newest if job.state != "done"]
    for job in [*active_jobs(KIND, ended), *failed]:
        job_panel(job)
        if job.state in ENDED:
            delete_button(job)


def _shown(packed: Sequence[str]) -> None:
    """The newest comparison of exactly these packed checkpoints, or another one that is chosen."""
    jobs = {
        job.id: job
        for job in _done()
        if {model.get("packed") for model in job.spec.get("models", ())} == set(packed)
    }
    if not jobs:
        st.caption(
            "The original and each run continue the same prompts, always with the most likely "
            "token; where the original would say another one than a run does is marked."
        )
        return
    shown = next(iter(jobs))
    if len(jobs) > 1:
        shown = kept.field(
            st.selectbox,
            "Asked",
            key="answers_shown",
            start=shown,
            options=list(jobs),
            format_func=lambda job_id: _label(jobs[job_id]),
        )
    try:
        result = _result(jobs[shown])
    except DersError as error:
        show_error(error)
        delete_button(jobs[shown])
        return
    if not _is_current(result):
        st.warning("A checkpoint that was asked has changed since, or is gone. Ask again.")
    names = [visible(str(model.get("name"))) for model in jobs[shown].spec["models"]]
    _side_by_side(names, result)
    with st.container(horizontal=True):
        _download(names, result)
        delete_button(jobs[shown])


def _label(job: Job) -> str:
    first, *others = job.spec.get("prompts") or (job.title,)
    more = f" and {len(others)} more" if others else ""
    return f"{in_one_line(str(first))[:80]}{more}"


def _side_by_side(names: Sequence[str], result: CompareResult) -> None:
    for of_prompt in zip(*result.replies, strict=True):
        st.markdown(strong(in_one_line(of_prompt[0].prompt)))
        cells: list[tuple[str, Replies | None]] = [("Original", None)]
        cells += zip(names, of_prompt, strict=True)
        side_by_side = math.ceil(len(cells) / math.ceil(len(cells) / A_ROW))  # 4 as 2 and 2
        for begin in range(0, len(cells), side_by_side):
            row = cells[begin : begin + side_by_side]
            for column, (name, replies) in zip(st.columns(side_by_side), row, strict=False):
                with column.container(border=True, height="stretch"):
                    st.markdown(strong(name))
                    if replies is None:
                        st.html(unmarked(of_prompt[0].original))
                        st.caption(f"{len(of_prompt[0].original.tokens)} tokens")
                    else:
                        st.html(marked(replies.compressed, "the original"))
                        st.caption(plain(_told(replies)))
    st.caption(
        "Marked: after the same text, the original says another token; rest the pointer on it."
    )


def _told(replies: Replies) -> str:
    kl = f"KL {number_text(replies.original.kl)} nats a token along the original's reply"
    if replies.are_same:
        return f"the same {replies.same} tokens; {kl}"
    return (
        f"parts from the original after {replies.same} tokens; "
        f"{replies.compressed.differences} of {len(replies.compressed.tokens)} marked; {kl}"
    )


def _download(names: Sequence[str], result: CompareResult) -> None:
    rows = [
        {"run": name, "prompt": replies.prompt, **row}
        for name, of_model in zip(names, result.replies, strict=True)
        for replies in of_model
        for row in replies.rows()
    ]
    words = "Every token of all replies with its probabilities."
    csv_button(pd.DataFrame(rows), "answers", words)

"""Runs: compress and evaluate in the worker, watch, compare."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from ders_core import figures
from ders_core.compute.device import available_devices
from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.jobs import Job
from ders_core.jobs.kinds.run import RunResult
from ders_core.later import pd
from ders_core.pipeline.budget import check_budget
from ders_core.pipeline.quality import (
    DELTA_ERROR,
    GAIN,
    KL,
    KL_HIGH,
    KL_LOW,
    NOISE,
    NOISE_COST,
    OUTPUT_ERROR,
    PERPLEXITY,
    ROUNDING,
    WEIGHT_ERROR,
    kl_text,
)
from ders_core.pipeline.recipe_files import check_files
from ders_core.ui import frame, kept, reads, runs, session
from ders_core.ui.answers import answers
from ders_core.ui.asked_tasks import asked_tasks, tasks_fields, tasks_table
from ders_core.ui.decision_report import report_button
from ders_core.ui.job_details import delete_button, log_tail, steps_line
from ders_core.ui.job_notes import describe_form, written
from ders_core.ui.job_pages import JobPage, job_page
from ders_core.ui.job_progress import (
    ENDED,
    STATES,
    active_jobs,
    ended_count,
    job_panel,
    resume_button,
    submit,
)
from ders_core.ui.measured_texts import texts_table, worst_tokens
from ders_core.ui.number_columns import figure_column, number_column
from ders_core.ui.place_title import place_title
from ders_core.ui.plain import plain, show_error, strong
from ders_core.ui.plots import made_of, plot
from ders_core.ui.repair_job import repair_form, repairs
from ders_core.ui.run_comparison import run_comparison
from ders_core.ui.runs_table import runs_table
from ders_core.ui.text_field import checked_texts
from ders_core.ui.trust import trust_switch
from ders_core.units import bytes_text, duration_text, listed, share_text

KIND = "run"
# of a run, in the plot
PLOTTED = [
    *("name", "ratio", KL.key, KL_LOW.key, KL_HIGH.key, "bytes_after", PERPLEXITY.key),
    runs.PLAIN,
]
SIZES = {"bytes_before": "before, MB", "bytes_after": "after, MB"}
UNASKED, ASKED = 3, 10  # details that are open: of runs without a result, of selected runs


def new_run() -> None:
    """The form that files a run of the current recipe on the open checkpoint."""
    source = frame.checkpoint_or_box()
    if source is None:
        return
    recipe = session.recipe()
    held_out = frame.demo_text("heldout.txt", source.path)
    store = session.job_store()
    with st.container(border=True):
        st.markdown(f"{strong(recipe.name)} on {strong(frame.label(source))}")
        columns = st.columns([3, 4, 2, 2, 2])
        name = kept.field(
            columns[0].text_input,
            "Run's name",
            key="run_name",
            start="",
            of=source.path,
            placeholder=store.free_name(KIND, recipe.name),
        )
        text = kept.field(
            columns[1].text_area,
            "Text to evaluate on",
            key="run_text",
            start=str(held_out) if held_out else "",
            placeholder="a file or directory; none: compress only",
            help="Held-out text (UTF-8, .jsonl, or a directory of such files): perplexity of both "
            "models, KL and agreement per token. Several texts, one a line, are read as one; with "
            "names, such as code=FILE, each is measured apart too.",
            height="content",
        )
        tokens = kept.field(
            columns[2].number_input,
            "Tokens",
            key="run_tokens",
            start=8192,
            min_value=256,
            max_value=1_000_000,
            step=1024,
        )
        device = kept.field(
            columns[3].selectbox,
            "Device",
            key="run_device",
            start="auto",
            options=["auto", *available_devices()],
            help="auto: the GPU where there is one.",
        )
        workers = kept.field(
            columns[4].number_input,
            "Workers",
            key="run_workers",
            start=0,
            min_value=0,
            max_value=64,
            help="Threads that encode; 0: one per core.",
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            tasks, questions = tasks_fields(source)
        with st.container(horizontal=True, vertical_alignment="center"):
            started = st.button(
                "Start", type="primary", icon=":material/play_arrow:", key="run_start"
            )
            trusted = trust_switch(source, "run_trust")
    if not started:
        return
    try:
        if recipe.budget is not None:
            check_budget(recipe, source)  # the run finds the knob
        else:
            reads.plan(source, recipe)
            check_files(recipe, source)
        texts = checked_texts(text)
        submit(
            KIND,
            {
                "checkpoint": str(source.path),
                "recipe": recipe.to_yaml(),
                "name": store.free_name(KIND, name.strip() or recipe.name),
                "device": device,
                "workers": int(workers) or None,
                "text": texts,
                "max_tokens": int(tokens),
                "trust_remote_code": trusted,
                **asked_tasks(tasks, questions, trusted=trusted),
            },
        )
    except DersError as error:
        show_error(error)
    else:
        st.rerun()


@st.fragment(run_every=1.5)
def active(ended: int) -> None:
    """Running jobs; redraws the page when one ends, so that `ended` is no longer true."""
    for job in active_jobs(KIND, ended):
        with job_panel(job):
            steps_line(job)
            if job.state == "running":
                log_tail(job)


def comparison(page: JobPage, rows: pd.DataFrame) -> list[Job]:
    """Table and plot of a page of ended runs. rows: one for each. Returns the selected ones."""
    chosen = runs_table(rows)
    compared = rows.iloc[chosen] if chosen else rows
    measured = compared.dropna(subset=[KL.key])
    if not measured.empty:
        plot(
            made_of(
                "size_quality",
                partial(figures.size_quality, measured),
                measured[PLOTTED].to_csv(),  # unknown numbers are equal in it
            ),
            "size_quality",
            measured,
            alt="Size of each run against its KL",
        )
        if chosen and len(chosen) < page.total:
            st.caption(f"Of {page.total} runs, the plot shows the selected ones.")
        elif not chosen and not page.is_all:
            st.caption(f"Of {page.total} runs, the plot shows those in the table.")
    selected = [page.jobs[row] for row in chosen]
    originals_line([page.jobs[row] for row in compared.index[compared["ratio"].notna()]])
    run_comparison(selected)
    report_button(selected or page.jobs, "runs_report")
    answers(selected or page.jobs)
    return selected


def originals_line(jobs: list[Job]) -> None:
    """Of which checkpoints the runs are, if of several: their sizes and KLs do not compare. jobs:
    runs with a result."""
    places = list(dict.fromkeys(str(job.spec.get("checkpoint", "")) for job in jobs))
    if len(places) > 1:
        titles = [place_title(place) for place in places]
        alone = [
            title if titles.count(title) == 1 else place
            for place, title in zip(places, titles, strict=True)
        ]
        names = plain(listed(alone))
        st.caption(
            f"Runs of {len(places)} checkpoints: {names}. Size and KL are against each run's own "
            "original."
        )


def problem(job: Job) -> str:
    """Why a run failed, or why its result cannot be shown; "" without a problem."""
    try:
        RunResult.of(job)
    except DersError as error:
        return str(error)
    return job.error or ""


def result_line(result: RunResult) -> str:
    """What a run costs, measured or else predicted; then what it saves."""
    quality = result.quality.to_dict() if result.quality else {}
    words = [
        f"KL {kl_text(quality)} nats a token" if quality.get(KL.key) is not None else "",
        result.outlook.text,
        f"{bytes_text(result.bytes_before)} → {bytes_text(result.bytes_after)} "
        f"({share_text(result.ratio)} of original) on {result.device}",
    ]
    return " · ".join(filter(None, words))


def groups_table(result: RunResult) -> None:
    """Each group with its gain and noise; reports of earlier versions have one error instead."""
    table = runs.groups(result)
    if table.empty:
        return
    known = [
        name for name in runs.GROUP_COLUMNS if (table[name].notna() & (table[name] != "")).any()
    ]
    if GAIN.key in known:
        known.remove(DELTA_ERROR.key)
    shown = (GAIN, NOISE, NOISE_COST, DELTA_ERROR, WEIGHT_ERROR, OUTPUT_ERROR, ROUNDING)
    in_megabytes = _in_megabytes(table[known])
    st.dataframe(  # of the report: hidden columns could be shown
        in_megabytes,
        hide_index=True,
        placeholder="",
        column_config={
            **_size_columns(in_megabytes),
            **{figure.key: figure_column(figure, in_megabytes) for figure in shown},
            "seconds": st.column_config.NumberColumn("seconds", format="%.2f"),
        },
    )


def others_table(result: RunResult) -> None:
    """The tensors outside the experts that were coded, by kind."""
    table = runs.others(result)
    if table.empty:
        return
    shown = _in_megabytes(table)
    st.dataframe(
        shown,
        hide_index=True,
        placeholder="",
        column_config={
            "kind": st.column_config.TextColumn("other tensors"),
            **_size_columns(shown),
            WEIGHT_ERROR.key: figure_column(WEIGHT_ERROR, shown),
        },
    )


def _in_megabytes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name] / 1e6 for name in SIZES})


def _size_columns(shown: pd.DataFrame) -> dict[str, Any]:
    return {name: number_column(label, shown[name]) for name, label in SIZES.items()}


def details(job: Job) -> None:
    """One run: size, steps, groups, log, recipe, and its buttons."""
    word, colour = STATES[job.state]
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(strong(job.title))
            st.badge(word, color=colour)  # type: ignore[arg-type]
            result = runs.readable(job)
            if result is not None:
                st.caption(plain(result_line(result)))
        reason = problem(job)
        if reason:
            show_error(reason)
        steps_line(job)
        if job.seconds is not None and job.peak_memory:
            st.caption(
                f"took {duration_text(job.seconds)}, peak memory {bytes_text(job.peak_memory)}"
            )
        written(job)
        if result is not None and result.report is not None and result.report.missed:
            missed = result.report.missed
            st.warning(plain(f"{missed[0].upper()}{missed[1:]}."))
        if result is not None and result.quality is not None:
            texts_table(result.quality)
            worst_tokens(result.quality, f"worst_{job.id}")
        if result is not None:
            tasks_table(result.tasks)
        if result is not None:
            groups_table(result)
            others_table(result)
        log_tail(job, 40)
        with st.expander("Recipe", key=f"recipe_{job.id}"):
            st.code(str(job.spec.get("recipe", "")), language="yaml")
        with st.container(horizontal=True, vertical_alignment="center"):
            if job.state == "done":
                st.page_link("pages/export.py", label="Export", icon=":material/download:")
            elif job.state in ("failed", "cancelled"):
                resume_button(job, f"again_{job.id}")
            delete_button(job)
        if job.state == "done" and result is not None and not is_address(job.spec["checkpoint"]):
            repair_form(job, result)
        describe_form(job)
        if result is not None:
            repairs(result)


def opened(jobs: list[Job], most: int) -> None:
    """Details of the first few of several runs, so that the page stays short."""
    for job in jobs[:most]:
        details(job)
    more = len(jobs) - most
    if more > 0:
        st.caption(f"And {more} more of this page; select them in the table to see them.")


def past() -> None:
    """The runs that have ended, a page of them at a time."""
    st.markdown("## Finished runs")
    page = job_page("runs", [KIND], ENDED)
    if not page.jobs:
        return
    rows = runs.ended(page.jobs)
    chosen = comparison(page, rows)
    noteworthy = rows["remark"].notna() | (rows["state"] != "done")
    if chosen:
        opened(chosen, ASKED)
    else:
        opened([page.jobs[row] for row in noteworthy.to_numpy().nonzero()[0]], UNASKED)
        st.caption("Select runs in the table to see their layers, log and recipe.")


frame.need_frame()
frame.head(
    "Runs",
    "Compress with the current recipe in the background, measure what it costs, compare runs.",
)
counts = session.job_store().counts(KIND)
new_run()
active(ended_count(counts))
if ended_count(counts):
    past()
elif not counts and session.current().checkpoint:
    st.info("No runs yet. *Start* compresses with the current recipe and measures what it costs.")

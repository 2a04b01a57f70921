"""Upcyclings that have ended: compare them, open or export one, resume or delete it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ders_core import figures
from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.jobs.job import JobState
from ders_core.jobs.results import PackedResult, packed_result
from ders_core.later import pd
from ders_core.ui import session
from ders_core.ui.job_details import delete_button, log_tail, steps_line
from ders_core.ui.job_pages import follow, job_page, show_selected
from ders_core.ui.job_progress import ENDED, STATES, ended_count, resume_button
from ders_core.ui.number_columns import number_column
from ders_core.ui.plain import plain, show_error, strong
from ders_core.ui.plots import plot
from ders_core.ui.upcycle import runs as upcycle_runs
from ders_core.ui.upcycle.live import curves
from ders_core.units import bytes_text, share_text

TABLE = "upcycle_table"
ADDRESS = "compared"
"""The parameter of the page's address that names the selected runs."""

COLUMNS = (
    "name",
    "state",
    "forms",
    "steps",
    "perplexity",
    "dense_perplexity",
    "perplexity_change",
    "packed_bytes",
    "trained",
    "peak_memory",
    "seconds",
    "device",
    "dense",
)


def results(counts: Mapping[JobState, int]) -> None:
    """A page of ended runs in a table, their losses in one plot, and the selected runs.

    counts: of upcyclings, by state.
    """
    if not ended_count(counts):
        if not counts:
            st.info("No upcycling yet. Choose a dense model and its experts under *New*, *Start*.")
        return
    st.markdown("## Runs that have ended")
    page = job_page("upcycles", ["upcycle"], ENDED, ("newest", "oldest", "name", "size"))
    if not page.jobs:
        return
    done = page.jobs
    chosen = [done[number] for number in _table(upcycle_runs.ended(done))]
    if len(chosen) != 1:  # a single run shows its curve below
        _overlay(chosen or done[: len(figures.EXPERT_COLOURS)])
    if not chosen:
        st.caption("Select runs to compare their losses and to see the details of each.")
    for job in chosen:
        _details(job, with_curves=len(chosen) == 1)


def _table(rows: pd.DataFrame) -> list[int]:
    """Returns the numbers of the selected rows."""
    ids = rows["id"].tolist()
    follow(TABLE, ids, ADDRESS)
    shown = rows.assign(
        state=rows["state"].map(lambda state: STATES[state][0]),
        trained=rows["trained"].astype(float) / 1e6,
        packed_bytes=rows["packed_bytes"].astype(float) / 1e6,
        perplexity_change=100 * rows["perplexity_change"].astype(float),
        peak_memory=rows["peak_memory"].astype(float) / 1e9,
    )

    def number(key: str, label: str, format: str = "%.3g", *, help: str | None = None) -> Any:
        return number_column(label, shown[key], format, help=help)

    event = st.dataframe(
        shown,
        hide_index=True,
        key=TABLE,
        placeholder="",
        on_select="rerun",
        selection_mode="multi-row",
        column_order=[name for name in COLUMNS if rows[name].notna().any()],
        column_config={
            "name": st.column_config.TextColumn("run", pinned=True, width=105),
            "trained": number("trained", "trained, M", help="Parameters with a gradient."),
            "packed_bytes": number("packed_bytes", "on disk, MB", help="Packed weight files."),
            "dense_perplexity": number(
                "dense_perplexity",
                "parent's",
                "%.4g",
                help="Perplexity of the dense parent, on the same text.",
            ),
            "perplexity": number(
                "perplexity",
                "perplexity",
                "%.4g",
                help="Of the packed MoE, on the held-out text.",
            ),
            "perplexity_change": number(
                "perplexity_change",
                "change",
                "%+.3g %%",
                help="The MoE's perplexity against its parent's.",
            ),
            "peak_memory": number("peak_memory", "memory, GB", help="The most at once."),
            "seconds": number("seconds", "seconds"),
        },
    )
    chosen = list(event.selection.rows)
    show_selected(TABLE, ids, chosen, ADDRESS)
    return chosen


def _overlay(jobs: list[Job]) -> None:
    histories = {job.title: upcycle_runs.history(job) for job in jobs}
    histories = {name: tables for name, tables in histories.items() if len(tables.steps)}
    if not histories:
        return
    rows = pd.concat([tables.steps.assign(run=name) for name, tables in histories.items()])
    plot(
        figures.loss_curves(histories),
        "upcycle_losses",
        rows,
        alt="Loss of each run over the steps",
    )


def _details(job: Job, *, with_curves: bool) -> None:
    """One run: its steps, curves, configuration, log and buttons."""
    word, colour = STATES[job.state]
    result = packed_result(job)
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(strong(job.title))
            st.badge(word, color=colour)  # type: ignore[arg-type]
            if result:
                st.caption(plain(_outcome(result)))
        if job.error:
            show_error(job.error)
        steps_line(job)
        with st.container(horizontal=True, vertical_alignment="center"):
            if result is not None:
                if st.button(
                    "Open as checkpoint", key=f"open_{job.id}", icon=":material/folder_open:"
                ):
                    _open(result.packed)
                st.page_link("pages/export.py", label="Export", icon=":material/download:")
            elif job.state != "done":
                resume_button(job, f"again_{job.id}")
            delete_button(job)
        history = upcycle_runs.history(job)
        if with_curves and len(history.steps):
            curves(history, job.id, plot)
        with st.expander("Configuration", key=f"config_{job.id}"):
            st.caption(f"Dense model: {plain(job.spec['dense'])}")
            st.code(str(job.spec["config"]), language="yaml")
        log_tail(job, 40)


def _outcome(result: PackedResult) -> str:
    return (
        f"{bytes_text(result.bytes_after)} packed, {share_text(result.ratio)} of its original "
        f"layout, on {result.device}"
    )


def _open(packed: str) -> None:
    try:
        session.open_path(packed)
    except DersError as error:
        show_error(error)
    else:
        st.switch_page("pages/checkpoint.py")

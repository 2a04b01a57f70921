"""The table of runs that have ended, in which some are selected."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.later import pd
from ders_core.pipeline.quality import (
    COMPARED,
    KL,
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    PREDICTED_KL,
    TOP1_AGREEMENT,
)
from ders_core.ui import kept, runs
from ders_core.ui.job_pages import follow, show_selected
from ders_core.ui.job_progress import STATES
from ders_core.ui.number_columns import SHARE, figure_column, number_column
from ders_core.units import shortened, visible

TABLE = "runs_table"
ADDRESS = "compared"
"""The parameter of the page's address that names the selected runs."""

NAME = 28
"""Characters of a run's name in its column, which stays in sight."""

WHOLE = "whole name"
"""The last of all columns, where a name is longer than that."""

FIRST_SEEN = {
    *("name", "state", "ratio", "bytes_after", *runs.WRITTEN, "remark"),
    *(figure.key for figure in (KL, PREDICTED_KL, PERPLEXITY, PERPLEXITY_CHANGE, TOP1_AGREEMENT)),
}
"""Columns that fit beside each other in a window of 1280 px."""


def runs_table(rows: pd.DataFrame) -> list[int]:
    """Draw it. rows: as of `ders_core.ui.runs.ended`. Returns numbers of the selected rows."""
    ids = rows["id"].tolist()
    follow(TABLE, ids, ADDRESS)
    texts, tasks = (
        [name for name in map(str, rows.columns) if name.startswith(begin)]
        for begin in (runs.DOMAIN, runs.TASK)
    )
    columns = ["name", "state", *runs.COLUMNS, *texts, *tasks, "device", *runs.WRITTEN, "remark"]
    names = rows["name"].map(lambda name: visible(str(name)))
    short = names.map(lambda name: shortened(name, NAME))
    if (short != names).any():
        columns.append(WHOLE)
        rows = rows.assign(**{WHOLE: names})
    percent = {figure.key: figure.scale for figure in COMPARED} | {"ratio": 100.0}
    table = st.container()
    is_whole = kept.field(
        st.toggle,
        "All columns",
        key="runs_all_columns",
        start=False,
        help="Gain, noise, tails of the KL, errors of weights, routing, device.",
    )
    seen = {*FIRST_SEEN, *texts, *tasks, *(columns if is_whole else ())}
    shown = rows[["id", *columns]].assign(
        name=short,
        state=rows["state"].map(lambda state: STATES[state][0]),
        bytes_after=rows["bytes_after"].astype(float) / 1e6,
        **{key: scale * rows[key].astype(float) for key, scale in percent.items()},
    )
    event = table.dataframe(
        shown,
        hide_index=True,
        column_order=[name for name in columns if name in seen and rows[name].notna().any()],
        key=TABLE,
        placeholder="",
        on_select="rerun",
        selection_mode="multi-row",
        column_config={
            "name": st.column_config.TextColumn("run", pinned=True),
            "bytes_after": number_column("size, MB", shown["bytes_after"]),
            "ratio": st.column_config.ProgressColumn(
                "of original", format=SHARE, min_value=0.0, max_value=100.0
            ),
            **{figure.key: figure_column(figure, shown) for figure in COMPARED},
            **{name: _text_column(name.removeprefix(runs.DOMAIN), rows[name]) for name in texts},
            **{name: _task_column(name.removeprefix(runs.TASK), rows[name]) for name in tasks},
            **{figure.key: figure_column(figure, shown, runs.MEAN) for figure in runs.MEANS},
        },
    )
    chosen = list(event.selection.rows)
    show_selected(TABLE, ids, chosen, ADDRESS)
    return chosen


def _text_column(name: str, values: pd.Series) -> Any:
    """The KL on one of several texts."""
    return number_column(
        f"KL, {visible(name)}", values, KL.format, help="KL on the text of this name alone."
    )


def _task_column(label: str, values: pd.Series) -> Any:
    """What was reached on a task. label: task and metric."""
    return number_column(
        visible(label), values, "%.4g", help="Reached on this task of lm-eval, by this metric."
    )

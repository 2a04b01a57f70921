"""Part of the Runs page: what parts the selected runs, in their recipes and over their layers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import streamlit as st

from ders_core import figures
from ders_core.jobs import Job
from ders_core.later import pd
from ders_core.pipeline.quality import WEIGHT_ERROR
from ders_core.ui import runs
from ders_core.ui.plain import strong
from ders_core.ui.plots import plot


def run_comparison(jobs: Sequence[Job]) -> None:
    """Of two or more runs: errors of each over the layers, and each recipe against the first."""
    if len(jobs) < 2:
        return
    st.markdown("### Selected runs side by side")
    errors = layer_errors(jobs)
    if not errors.empty:
        plot(
            figures.errors_over_depth(errors),
            "run_errors",
            errors,
            alt="Error of the weights of each run over the layers",
        )
    first, *others = jobs
    for other in others:
        with st.expander(f"Recipe of {strong(other.title)} against {strong(first.title)}"):
            text = recipe_difference(first, other)
            st.code(text or "No difference.", language="diff" if text else None)


def layer_errors(jobs: Sequence[Job]) -> pd.DataFrame:
    """run, layer, projection, rel_error_weight: a row for each group of each run that is done."""
    tables = []
    for job, name in zip(jobs, runs.names(jobs), strict=True):
        result = runs.readable(job)
        groups = pd.DataFrame() if result is None else runs.groups(result)
        if not groups.empty:
            shown = groups[["layer", "projection", WEIGHT_ERROR.key]]
            tables.append(shown.assign(run=name))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def recipe_difference(first: Job, other: Job) -> str:
    """The lines of YAML that differ; "" without any."""
    before, after = (str(job.spec.get("recipe", "")).splitlines() for job in (first, other))
    return "\n".join(difflib.unified_diff(before, after, first.title, other.title, lineterm=""))

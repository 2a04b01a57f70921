"""Part of the Runs page: what parts the selected runs, on texts, over layers, in their recipes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import streamlit as st

from ders_core import figures
from ders_core.jobs import Job
from ders_core.later import pd
from ders_core.pipeline.quality import KL, KL_HIGH, KL_LOW, WEIGHT_ERROR
from ders_core.ui import runs
from ders_core.ui.plain import strong
from ders_core.ui.plots import plot


def run_comparison(jobs: Sequence[Job]) -> None:
    """Of two or more runs: the KL of each on texts that were measured apart, errors over the
    layers, and each recipe against the first."""
    if len(jobs) < 2:
        return
    st.markdown("### Selected runs side by side")
    texts, over_layers = (
        "KL of each run on each text, with its interval",
        "Error of the weights of each run over the layers",
    )
    for key, table, draw, alt in (
        ("run_texts", text_kls(jobs), figures.kl_on_texts, texts),
        ("run_errors", layer_errors(jobs), figures.errors_over_depth, over_layers),
    ):
        if not table.empty:
            plot(draw(table), key, table, alt=alt)
    first, *others = jobs
    for other in others:
        with st.expander(f"Recipe of {strong(other.title)} against {strong(first.title)}"):
            text = recipe_difference(first, other)
            st.code(text or "No difference.", language="diff" if text else None)


def text_kls(jobs: Sequence[Job]) -> pd.DataFrame:
    """run, text, kl, kl_low, kl_high: a row for each text with a name of each run that measured its
    KL."""
    rows = []
    for job, name in zip(jobs, runs.names(jobs), strict=True):
        result = runs.readable(job)
        quality = None if result is None else result.quality
        rows += [
            {"run": name, "text": text.name}
            | {figure.key: getattr(text, figure.key) for figure in (KL, KL_LOW, KL_HIGH)}
            for text in (quality.domains if quality is not None else ())
            if text.kl is not None
        ]
    table = pd.DataFrame(rows, columns=["run", "text", KL.key, KL_LOW.key, KL_HIGH.key])
    return table.astype(dict.fromkeys((KL.key, KL_LOW.key, KL_HIGH.key), float))


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

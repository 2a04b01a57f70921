"""Part of the Runs page: what parts the selected runs, on texts, over layers, in their recipes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import streamlit as st

from ders_core import figures
from ders_core.figures.kl_axis import LEAST_KL
from ders_core.jobs import Job
from ders_core.later import pd
from ders_core.pipeline.quality import KL, KL_HIGH, KL_LOW, WEIGHT_ERROR
from ders_core.ui import runs
from ders_core.ui.plain import plain, strong
from ders_core.ui.plots import plot
from ders_core.units import listed


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
    order, kls, errors = runs.names(jobs), text_kls(jobs), layer_errors(jobs)
    if (kls[KL.key] > LEAST_KL).any():
        plot(figures.kl_on_texts(kls, order), "run_texts", kls, alt=texts)
    exact = lossless(kls)
    if exact:
        st.caption(plain(f"Without loss on these texts: {listed(exact)}."))
    if not errors.empty:
        plot(figures.errors_over_depth(errors, order), "run_errors", errors, alt=over_layers)
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


def lossless(kls: pd.DataFrame) -> list[str]:
    """The runs that lose nothing on any text. kls: of `text_kls`."""
    most = kls.groupby("run", sort=False)[KL.key].max()
    return [str(run) for run in most.index[most <= LEAST_KL]]


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

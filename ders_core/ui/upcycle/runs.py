"""Upcycling runs as a table, and the history of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.jobs.kinds.upcycle import UpcycleFigures, UpcycleResult
from ders_core.later import pd
from ders_core.ui import session
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.history import HistoryReader, Tables

COLUMNS = (
    "id",
    "name",
    "forms",
    "dense",
    "state",
    "steps",
    "trained",
    "packed_bytes",
    "dense_perplexity",
    "perplexity",
    "perplexity_change",
    "peak_memory",
    "seconds",
    "device",
)


@st.cache_resource(show_spinner=False, max_entries=32)
def _reader(packed: Path) -> HistoryReader:
    return HistoryReader(packed)


def history(job: Job) -> Tables:
    """What was measured so far; empty tables before the first step. Callers do not change them."""
    return _reader(session.workspace().run_dir(job.id) / "packed").tables()


def config_of(job: Job) -> UpcycleConfig | None:
    """None if another version wrote a configuration that this one cannot read."""
    try:
        return UpcycleConfig.from_yaml(str(job.spec["config"]))
    except (DersError, KeyError):
        return None


def row(job: Job) -> dict[str, Any]:
    """The result of an ended upcycling; unknown figures are None."""
    figures, config = figures_of(job), config_of(job)
    if figures is None:
        steps = history(job).steps
        return _known(job, config) | {"steps": int(steps["step"].iloc[-1]) if len(steps) else None}
    dense, perplexity = figures.dense_perplexity, figures.perplexity
    return _known(job, config) | {
        "forms": figures.label,
        "steps": figures.steps,
        "trained": figures.trained,
        "packed_bytes": figures.packed_bytes,
        "dense_perplexity": dense,
        "perplexity": perplexity,
        "perplexity_change": perplexity / dense - 1 if perplexity and dense else None,
        "peak_memory": figures.peak_memory,
        "seconds": figures.seconds,
        "device": figures.device,
    }


def figures_of(job: Job) -> UpcycleFigures | None:
    """The figures of a finished upcycling; None if another version wrote them."""
    try:
        result = UpcycleResult.of(job)
    except DersError:
        return None
    return result.upcycled if result is not None else None


def _known(job: Job, config: UpcycleConfig | None) -> dict[str, Any]:
    """What is known of any upcycling; the other columns are None."""
    return dict.fromkeys(COLUMNS) | {
        "id": job.id,
        "name": job.title,
        "forms": config.label if config else None,
        "dense": Path(str(job.spec["dense"])).name,
        "state": job.state,
    }


def ended(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each, in their order."""
    return pd.DataFrame([row(job) for job in jobs])

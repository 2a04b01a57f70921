"""Upcycling runs as a table, and the history of each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.ui import session
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.history import HistoryReader, Tables

ENDED = ("done", "failed", "cancelled")


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
    """The outcome of an ended upcycling; None for what is not known."""
    result = (job.result or {}).get("upcycled") or {}
    config, steps = config_of(job), result.get("steps")
    if steps is None:
        moments = history(job).steps
        steps = int(moments["step"].iloc[-1]) if len(moments) else None
    dense, perplexity = result.get("dense_perplexity"), result.get("perplexity")
    return {
        "id": job.id,
        "name": job.spec.get("name") or job.title,
        "forms": result.get("label") or (config.label if config else None),
        "dense": Path(str(job.spec["dense"])).name,
        "state": job.state,
        "steps": steps,
        "trained": result.get("trained"),
        "packed_bytes": result.get("packed_bytes"),
        "dense_perplexity": dense,
        "perplexity": perplexity,
        "perplexity_change": perplexity / dense - 1 if perplexity and dense else None,
        "peak_memory": result.get("peak_memory"),
        "seconds": result.get("seconds"),
        "device": result.get("device"),
    }


def ended(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each that has ended, newest first."""
    return pd.DataFrame([row(job) for job in jobs if job.state in ENDED])

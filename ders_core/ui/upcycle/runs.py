"""Upcyclings as tables: one row a run, and the history of each."""

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
from ders_core.upcycle.history import Tables, Watch

ENDED = ("done", "failed", "cancelled")


@st.cache_resource(show_spinner=False, max_entries=32)
def _watch(packed: Path) -> Watch:
    return Watch(packed)


def history(job: Job) -> Tables:
    """What was measured so far; empty tables before the first step. Not to be changed."""
    return _watch(session.workspace().run_dir(job.id) / "packed").tables()


def config_of(job: Job) -> UpcycleConfig | None:
    """None if another version wrote it."""
    try:
        return UpcycleConfig.from_yaml(str(job.spec["config"]))
    except (DersError, KeyError):
        return None


def row(job: Job) -> dict[str, Any]:
    """What an ended upcycling came to; what is not known is None."""
    found = (job.result or {}).get("upcycled") or {}
    config, steps = config_of(job), found.get("steps")
    if steps is None:
        told = history(job).steps
        steps = int(told["step"].iloc[-1]) if len(told) else None
    dense, perplexity = found.get("dense_perplexity"), found.get("perplexity")
    return {
        "id": job.id,
        "name": job.spec.get("name") or job.title,
        "forms": found.get("label") or (config.label if config else None),
        "dense": Path(str(job.spec["dense"])).name,
        "state": job.state,
        "steps": steps,
        "trained": found.get("trained"),
        "packed_bytes": found.get("packed_bytes"),
        "dense_perplexity": dense,
        "perplexity": perplexity,
        "perplexity_change": perplexity / dense - 1 if perplexity and dense else None,
        "peak_memory": found.get("peak_memory"),
        "seconds": found.get("seconds"),
        "device": found.get("device"),
    }


def ended(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each that has ended, newest first."""
    return pd.DataFrame([row(job) for job in jobs if job.state in ENDED])

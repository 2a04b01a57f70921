"""Finished runs as tables: one row a run, and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ders_core.jobs import Job

COLUMNS = {
    "ratio": "share of original",
    "bytes_after": "bytes",
    "perplexity": "perplexity",
    "perplexity_change": "perplexity change",
    "kl": "KL, nats a token",
    "top1_agreement": "same top token",
    "routing_agreement": "same experts",
    "rel_error_delta": "‖Ŵ−W‖/‖Δ‖",
    "rel_error_weight": "‖Ŵ−W‖/‖W‖",
}


def row(job: Job) -> dict[str, Any]:
    """What a finished run came to; what was not measured is None."""
    result = job.result or {}
    quality = result.get("quality") or {}
    entries = (result.get("report") or {}).get("entries") or []
    replaced = [entry for entry in entries if entry["codec"] != "keep"]

    def mean(error: str) -> float:
        return sum(entry[error] for entry in replaced) / len(replaced) if replaced else 0.0

    perplexity, reference = quality.get("perplexity"), quality.get("reference_perplexity")
    return {
        "id": job.id,
        "name": job.spec.get("name") or job.title,
        "device": result.get("device"),
        "bytes_after": result.get("bytes_after"),
        "ratio": result.get("ratio"),
        "perplexity": perplexity,
        "reference_perplexity": reference,
        "perplexity_change": perplexity / reference - 1 if perplexity and reference else None,
        "kl": quality.get("kl"),
        "top1_agreement": quality.get("top1_agreement"),
        "routing_agreement": quality.get("routing_agreement"),
        "rel_error_delta": mean("rel_error_delta"),
        "rel_error_weight": mean("rel_error_weight"),
    }


def finished(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each run that is done, newest first."""
    rows = [row(job) for job in jobs if job.state == "done" and job.result]
    return pd.DataFrame(rows)


def layers(job: Job) -> pd.DataFrame:
    """The report's entries of a run."""
    entries = ((job.result or {}).get("report") or {}).get("entries") or []
    return pd.DataFrame(entries)


def free_name(name: str, jobs: Sequence[Job]) -> str:
    """A name, numbered if a run is called so already."""
    taken = {str(job.spec.get("name")) for job in jobs}
    free, number = name, 2
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free

"""Typed results out of a store: those of today, of earlier versions, and unreadable ones."""

from __future__ import annotations

from typing import Any

import pytest
from support.stored_results import PARAMETERS, RESULTS

from ders_core.jobs import Job, JobStore
from ders_core.jobs.claims import Claims
from ders_core.jobs.results import packed_result
from ders_core.pipeline.report import Outlook
from ders_core.ui import runs


def done(store: JobStore, kind: str, spec: dict[str, Any], result: dict[str, Any]) -> Job:
    """A job that a worker ended with this stored result."""
    number = store.submit(kind, spec, "a title").id
    claim = Claims(store.path, "me").claim()
    assert claim is not None
    claim.complete(result)
    return store.get(number)


RUN = {"checkpoint": "/m", "recipe": "name: x"}
UPCYCLE = {"dense": "/d", "config": "name: x"}


def test_runs_and_upcyclings_leave_a_packed_checkpoint(store: JobStore) -> None:
    run = packed_result(done(store, "run", RUN, RESULTS["run"][0]))
    upcycled = packed_result(done(store, "upcycle", UPCYCLE, RESULTS["upcycle"][0]))
    assert run is not None
    assert upcycled is not None
    assert (run.packed, run.bytes_after) == ("/w/runs/00001/packed", 300)
    assert run.measured is not None
    assert run.measured.kl == 0.25
    assert (upcycled.packed, upcycled.measured) == ("/w/runs/00002/packed", None)


def test_other_jobs_leave_none(store: JobStore) -> None:
    waiting = store.submit("run", RUN)
    assert packed_result(waiting) is None
    assert packed_result(done(store, "run", RUN, {"packed": "/p"})) is None  # unreadable
    analysis = RESULTS["analyze"][0]
    assert packed_result(done(store, "analyze", PARAMETERS["analyze"], analysis)) is None


def test_the_table_of_finished_runs(store: JobStore) -> None:
    jobs = [
        done(store, "run", RUN, RESULTS["run"][0]),
        done(store, "run", RUN, RESULTS["run"][1]),
        done(store, "run", RUN, {"packed": "/p"}),
    ]
    table = runs.finished(jobs)
    assert table["id"].tolist() == [jobs[0].id, jobs[1].id]
    assert table["name"].tolist() == ["a title", "a title"]
    measured, unmeasured = table.iloc[0], table.iloc[1]
    assert measured["perplexity_change"] == pytest.approx(12.5 / 12 - 1)
    assert (measured["kl"], measured["top1_agreement"]) == (0.25, 0.9)
    assert (measured["gain"], measured["noise"]) == (0.9, 0.17)
    assert measured["predicted_kl"] == 0.2
    assert table["kl"].isna().tolist() == [False, True]
    assert measured[["kl_low", "kl_high", "kl_p95", "kl_p99"]].tolist() == [0.2, 0.3, 0.9, 2.5]
    assert measured[["kl of code", "kl of prose"]].tolist() == [0.4, 0.1]
    shown = runs.ended(jobs)
    assert [name for name in map(str, shown) if name.startswith("kl of ")] == [
        "kl of code",
        "kl of prose",
    ]
    assert shown["kl of code"].isna().tolist() == [False, True, True]
    assert unmeasured["ratio"] == 0.3
    result = runs.readable(jobs[0])
    assert result is not None
    groups = runs.groups(result)
    assert groups[["layer", "projection", "codec"]].to_numpy().tolist() == [[0, "up", "4-bit"]]
    assert set(runs.GROUP_COLUMNS) <= set(groups.columns)


def test_reports_of_earlier_versions_know_no_gain(store: JobStore) -> None:
    old = done(store, "run", RUN, RESULTS["run"][3])
    result = runs.readable(old)
    assert result is not None
    assert result.outlook == Outlook(predicted_kl=0.2)  # as if it had been predicted
    assert runs.finished([old])[["gain", "noise"]].isna().all(axis=None)
    assert runs.groups(result)["rel_error_delta"].tolist() == [0.2]

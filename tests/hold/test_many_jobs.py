"""The store of many jobs: what it reads for a page, a count or a claim is bounded by what is asked
for, and in the order of an index. All bounds are counts, none is of seconds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.large_workspaces import fill_with_runs, kl_of, size_of
from support.store_reads import Reads

from ders_core.jobs import JobStore, Which
from ders_core.jobs.claims import Claims
from ders_core.jobs.schema import connection
from ders_core.jobs.which import ORDERS, PAGE, SORTED, Order


def test_pages_of_jobs_are_those_of_a_list_that_is_sorted_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "ders.sqlite"
    fill_with_runs(path, 120, failed=10, waiting=15)
    store = JobStore(path)
    assert store.counts("run") == {"done": 95, "failed": 10, "queued": 15}
    assert store.counts("export") == {}
    failed = [number for number in range(1, 106) if number % 10 == 0]
    done = [number for number in range(1, 106) if number % 10]
    assert [job.id for job in store.page(Which(("run",), ("failed",)))] == failed[::-1]
    last = float("inf")
    measured = {number: kl_of(number) for number in done}
    sorted_by: dict[Order, list[int]] = {
        "newest": done[::-1],
        "oldest": done,
        "name": sorted(done, key=lambda number: f"run {number}"),
        "KL": sorted(done, key=lambda n: (last if measured[n] is None else measured[n], -n)),
        "size": sorted(done, key=lambda number: (size_of(number), -number)),
    }
    assert sorted_by.keys() == set(ORDERS)
    which = Which(("run",), ("done",))
    for order, numbers in sorted_by.items():
        turned = [
            job.id for first in range(0, 120, PAGE) for job in store.page(which, order, first=first)
        ]
        assert turned == numbers
    some = Which(("run",), ("done", "failed"), "UN 1")
    named = [number for number in range(1, 106) if str(number).startswith("1")]
    assert [job.id for job in store.page(some, "oldest", most=-1)] == named
    assert store.count(some) == len(named)
    assert store.count(Which(name="%")) == store.count(Which(name="run_1")) == 0
    newest = store.newest(Which(("run",), checkpoint="/models/moe1"))
    assert newest is not None
    assert newest.id == 118
    assert store.newest(Which(("analyze",))) is None


def test_free_names(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "ders.sqlite")
    spec = {"checkpoint": "/m", "recipe": "name: x"}
    taken = []
    for _ in range(9):
        name = store.free_name("run", "small")
        assert name not in taken
        taken.append(name)
        store.submit("run", {**spec, "name": name})
    assert taken == ["small", *(f"small ({number})" for number in range(2, 10))]
    assert store.free_name("upcycle", "small") == "small"
    assert store.free_name("run", "smal") == "smal"


@pytest.mark.parametrize("order", ORDERS)
def test_orders_come_from_indexes(tmp_path: Path, order: Order) -> None:
    path = tmp_path / "ders.sqlite"
    fill_with_runs(path, 50)
    with connection(path) as db:
        for which in (Which(("run",), ("done", "failed")), Which(("run",), name="7")):
            condition, values = which.condition()
            plan = db.execute(
                f"EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE {condition}"
                f" ORDER BY {SORTED[order]} LIMIT 25",
                values,
            ).fetchall()
            steps = " ".join(row["detail"] for row in plan)
            assert "USING COVERING INDEX" in steps  # spec and result of no row are read
            assert "SCAN jobs" not in steps


def test_states_are_counted_in_the_order_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page of jobs counts them, and again every other second while it is open."""
    path = tmp_path / "ders.sqlite"
    fill_with_runs(path, 50, failed=5)
    asked: list[str] = []
    connect = sqlite3.connect

    def watched(*words: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*words, **options)
        db.set_trace_callback(asked.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", watched)
    assert JobStore(path).counts("run") == {"done": 45, "failed": 5}
    monkeypatch.undo()
    (query,) = [each for each in asked if each.startswith("SELECT state")]
    with connection(path) as db:
        plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert len(plan) == 1  # nothing is sorted first
    assert "USING COVERING INDEX jobs_by_kind_and_state" in plan[0]


@pytest.mark.parametrize("which", ["CHECKPOINT", "NAME"])
def test_parameters_are_found_by_indexes(tmp_path: Path, which: str) -> None:
    from ders_core.jobs import which as words

    JobStore(tmp_path / "ders.sqlite")
    with connection(tmp_path / "ders.sqlite") as db:
        plan = db.execute(
            f"EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE kind IN ('run') AND"
            f" {getattr(words, which)} = 'x' ORDER BY id DESC LIMIT 1"
        ).fetchall()
    assert f"jobs_by_{which.lower()} (kind=? AND <expr>=?)" in plan[0]["detail"]


def test_a_store_of_the_former_version_is_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ders_core.jobs import schema

    path = tmp_path / "ders.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        fill_with_runs(path, 60, failed=6)
        with connection(path) as db:
            assert db.execute("PRAGMA user_version").fetchone()[0] == 1
            assert not db.execute(
                "SELECT * FROM sqlite_master WHERE name LIKE 'jobs_by_k%'"
            ).fetchall()
            db.execute('UPDATE jobs SET result = \'{"quality": {"kl": NaN}}\' WHERE id = 59')
    store = JobStore(path)
    jobs = {job.id: job for job in store.list()}
    assert sorted(jobs) == list(range(1, 61))
    assert {n for n, job in jobs.items() if job.state == "failed"} == set(range(10, 61, 10))
    assert (jobs[58].title, (jobs[58].result or {})["quality"]["kl"]) == ("run 58", kl_of(58))
    done = [number for number in range(1, 61) if number % 10 and number != 59]
    best = min((number for number in done if kl_of(number)), key=lambda n: kl_of(n) or 0)
    found = store.page(Which(("run",), ("done",)), "KL", most=-1)
    assert found[0].id == best
    assert {59, 56, 49} <= {job.id for job in found[-9:]}  # without a KL they are the last
    with connection(path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    claims = Claims(path, "me")
    claims.beat(None, 0, 0.0)
    number = store.submit("analyze", {"checkpoint": "/m"}).id
    claim = claims.claim()
    assert claim is not None
    assert claim.job.id == number


def test_a_claim_looks_at_no_other_job(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "ders.sqlite"
    fill_with_runs(path, 2000, waiting=1500)
    claims = Claims(path, "me")
    claims.beat(None, 0, 0.0)
    reads.rows = reads.steps = 0
    claim = claims.claim()
    assert claim is not None
    assert claim.job.id == 501
    assert (reads.rows, reads.steps) <= (10, 1)

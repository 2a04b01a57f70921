"""Pages of a workspace of many runs and of a checkpoint of many tensors: what they read and draw is
bounded by what they show. All bounds are counts, none is of seconds."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest
from support.large_workspaces import (
    FFN,
    HIDDEN,
    PARTS,
    fill_with_runs,
    kl_of,
    make_many_tensors,
    size_of,
)
from support.studio_pages import on, opened, words

from ders_core.checkpoint import checkpoint as checkpoints
from ders_core.files import store as tensor_stores
from ders_core.jobs import JobStore, Which, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.schema import connection
from ders_core.jobs.which import ORDERS, PAGE, SORTED, Order
from ders_core.packed.open import open_checkpoint
from ders_core.ui import reads as reads_of_pages

PAGES = ("checkpoint", "redundancy", "spectra", "recipe", "runs", "export", "upcycle")
STEPS = 1000
"""Steps of SQLite's machine between two counts."""


class Reads:
    """What was read of job stores. rows: that left SQLite; steps: thousands of its machine's."""

    def __init__(self) -> None:
        self.rows = self.steps = self.parsed = 0

    def step(self) -> None:
        self.steps += 1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Counts from now on."""
    from ders_core.jobs import store
    from ders_core.jobs.job import job_of

    reads = Reads()

    class Cursor(sqlite3.Cursor):
        def fetchall(self) -> list[Any]:
            rows = super().fetchall()
            reads.rows += len(rows)
            return rows

        def fetchone(self) -> Any:
            row = super().fetchone()
            reads.rows += row is not None
            return row

    class Connection(sqlite3.Connection):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            self.set_progress_handler(reads.step, STEPS)

        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    def counted(row: sqlite3.Row) -> Any:
        reads.parsed += 1
        return job_of(row)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))
    monkeypatch.setattr(store, "job_of", counted)
    return reads


def drawn(app: AppTest) -> int:
    """Elements and blocks of everything that is shown."""

    def count(node: Any) -> int:
        return 1 + sum(map(count, getattr(node, "children", {}).values()))

    return count(app._tree)


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
    claims.beat(None, (), 0, 0.0)
    number = store.submit("analyze", {"checkpoint": "/m"}).id
    claim = claims.claim()
    assert claim is not None
    assert claim.job.id == number


def test_a_claim_looks_at_no_other_job(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "ders.sqlite"
    fill_with_runs(path, 2000, waiting=1500)
    claims = Claims(path, "me")
    claims.beat(None, (), 0, 0.0)
    reads.rows = reads.steps = 0
    claim = claims.claim()
    assert claim is not None
    assert claim.job.id == 501
    assert (reads.rows, reads.steps) <= (10, 1)


def test_what_pages_read_and_draw_does_not_grow_with_the_runs(
    app: AppTest,
    workspace: Workspace,
    moe: Path,
    reads: Reads,
    rounds: Callable[[int, int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unbounded(*words: Any, **options: Any) -> None:
        raise AssertionError("a page read every job")

    monkeypatch.setattr(JobStore, "list", unbounded)
    count = rounds(3000, 20_000)
    fill_with_runs(workspace.store_path, count, failed=count // 50, waiting=count // 10)
    opened(app, moe)
    for page in PAGES:
        reads.rows = reads.parsed = reads.steps = 0
        on(app, page)
        assert reads.rows <= 8 * PAGE, page
        assert reads.parsed <= 3 * PAGE, page
        assert STEPS * reads.steps <= 100 * count, page  # indexes alone: no JSON is parsed in SQL
        assert drawn(app) <= 250, page
        assert len(words(app)) < 20_000, page
        for table in app.dataframe:
            assert len(table.value) <= PAGE


def test_runs_are_turned_chosen_and_sorted_by_page(
    app: AppTest, workspace: Workspace, moe: Path
) -> None:
    fill_with_runs(workspace.store_path, 300, failed=28, waiting=20)
    on(opened(app, moe), "runs")

    def least(number: int) -> float:
        kl = kl_of(number)
        assert kl is not None
        return kl

    def shown() -> list[str]:
        names: list[str] = app.dataframe[0].value["name"].tolist()
        return names

    assert shown() == [f"run {number}" for number in range(280, 255, -1)]
    assert "1 to 25 of 280" in words(app)
    assert "15 more wait" in words(app)
    assert len(app.error) == 3  # of the failed ones in the table, the newest
    assert app.dataframe[0].value["remark"].notna().sum() == 3
    pager: Any = app.get("pagination")[0]
    pager.set_value(2).run()
    assert shown() == [f"run {number}" for number in range(255, 230, -1)]
    app.session_state["runs_table"] = {"selection": {"rows": [1], "columns": []}}
    app.run()
    assert [button.key for button in app.button if str(button.key).startswith("delete_")] == [
        "delete_254"
    ]
    JobStore(workspace.store_path).delete(255)
    app.run()  # the same run is still the selected one
    assert "delete_254" in {button.key for button in app.button}
    assert app.session_state["runs_table"]["selection"]["rows"] == [0]
    app.segmented_control(key="runs_state").set_value("failed").run()
    assert shown() == [f"run {number}" for number in range(280, 30, -10)]
    assert not app.exception
    app.segmented_control(key="runs_state").set_value("done").run()
    app.selectbox(key="runs_order").set_value("KL").run()
    done = [number for number in range(1, 281) if number % 10 and number != 255]
    measured = [number for number in done if kl_of(number) is not None]
    assert shown() == [f"run {number}" for number in sorted(measured, key=least)[:25]]
    app.text_input(key="runs_named").set_value("run 19").run()
    ours = [number for number in measured if str(number).startswith("19")]
    unmeasured = [number for number in done if str(number).startswith("19") and number % 7 == 0]
    assert shown() == [f"run {n}" for n in (*sorted(ours, key=least), *unmeasured[::-1])]
    app.text_input(key="runs_named").set_value("no such").run()
    assert not app.exception
    assert not app.dataframe
    on(app, "export")
    assert app.selectbox(key="export_run").options[0].startswith("run 279")
    assert len(app.selectbox(key="export_run").options) == PAGE


def test_many_tensors_share_what_is_alike(tmp_path: Path) -> None:
    layers, experts, shards = 3, 40, 2
    count = make_many_tensors(tmp_path / "moe", layers, experts, shards)
    checkpoint = open_checkpoint(tmp_path / "moe")
    routed = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
        for layer in range(layers)
        for expert in range(experts)
        for part in PARTS
    }
    tensors = checkpoint.tensors
    assert len(tensors) == count == len(routed) + len(checkpoint.other_tensors())
    assert routed.isdisjoint(info.name for info in checkpoint.other_tensors())
    for group in checkpoint.groups():
        part = {"gate": "w1", "up": "w3", "down": "w2"}[group.projection]
        block = f"model.layers.{group.layer}.block_sparse_moe.experts"
        assert group.sources == tuple(f"{block}.{e}.{part}.weight" for e in range(experts))
        assert group.shape == (experts, *PARTS[part])
        assert group.nbytes == experts * 2 * HIDDEN * FFN
        stored = load_file(tensors[group.sources[7]].sources()[0].file)[group.sources[7]]
        assert torch.equal(group.read(7), stored)
    assert checkpoint.bytes_experts == len(routed) * 2 * HIDDEN * FFN
    specs = {id(tensor.spec) for tensor in tensors.values()}
    assert len(specs) <= shards * len({tensor.shape for tensor in tensors.values()})
    slots = {id(matrix.slot) for group in checkpoint.groups() for matrix in group.experts}
    assert len(slots) == len(checkpoint.groups())


def test_pages_describe_a_checkpoint_once_whatever_its_size(
    app: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*words: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*words, **options)

        monkeypatch.setattr(module, name, call)

    counted(tensor_stores, "read_header")
    counted(checkpoints, "gather")
    counted(tensor_stores, "content_identity")
    counted(reads_of_pages, "resolve")
    counted(reads_of_pages, "summarize")
    sizes: list[list[tuple[int, int]]] = []
    places = {experts: tmp_path / f"moe{experts}" for experts in (4, 200)}
    for experts, place in places.items():
        make_many_tensors(place, 2, experts)
    for place in places.values():
        if sizes:
            on(app, "checkpoint")
        opened(app, place)
        drawings = []
        for _ in range(2):
            drawn_here, sent = 0, 0
            for page in PAGES:
                on(app, page)
                drawn_here += drawn(app)
                sent += sum(len(table.proto.arrow_data.data) for table in app.dataframe)
            drawings.append((drawn_here, sent))
        assert calls == {
            "read_header": 1,
            "gather": 1,
            "content_identity": 1,
            "resolve": 2,  # the preset that the first screen speaks of, and the current recipe
            "summarize": 1,
        }
        calls.clear()
        sizes.append(drawings)
    (few, few_sent), (many, many_sent) = (drawings[1] for drawings in sizes)
    assert many == few
    assert many_sent <= few_sent + 500  # the numbers have more digits

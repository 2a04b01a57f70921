from __future__ import annotations

import multiprocessing
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from support import forks
from support.forks import FORKS
from support.messages import raises_saying

from ders_core.errors import JobError
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import MAX_LOSSES, Claim, Claims, TakenOver
from ders_core.jobs.job import STALE_AFTER
from ders_core.jobs.schema import MIGRATIONS, connection


def submit(store: JobStore, title: str = "a job") -> int:
    return store.submit("analyze", {"checkpoint": "/m"}, title).id


def take(store: JobStore, worker_id: str = "me") -> Claim:
    claims = Claims(store.path, worker_id)
    claims.beat(None, 1000, 5.0)
    claim = claims.claim()
    assert claim is not None
    return claim


def silence(store: JobStore, worker_id: str) -> None:
    """Make a worker's last heartbeat too old."""
    with connection(store.path) as db:
        old = time.time() - STALE_AFTER - 1
        db.execute("UPDATE workers SET heartbeat = ? WHERE id = ?", (old, worker_id))


def test_submit_get_list(store: JobStore) -> None:
    run = store.submit("run", {"checkpoint": "/m", "recipe": "name: x"}, "Pack m")
    assert run.state == "queued"
    assert (run.kind, run.title, run.attempt, run.result, run.error) == (
        "run",
        "Pack m",
        0,
        None,
        None,
    )
    assert run.spec["device"] == "auto"
    assert [step.name for step in run.steps] == ["compress", "verify", "evaluate"]
    assert {step.state for step in run.steps} == {"waiting"}
    assert store.get(run.id) == run
    look = store.submit("analyze", {"checkpoint": "/m"}, "Look")
    assert [job.id for job in store.list()] == [look.id, run.id]
    assert [job.id for job in store.list(kind="run")] == [run.id]
    assert store.list(states=["running"]) == []
    assert len(store.list(states=["queued", "done"])) == 2
    assert JobStore(store.path).get(run.id) == run


@pytest.mark.parametrize(
    ("kind", "spec", "facts"),
    [
        (
            "dance",
            {},
            ["'dance'", "evaluate, export, pilot, prove, push, repair, run, series, tune, upcycle"],
        ),
        ("run", {"checkpoint": "/m"}, ["'run' needs", "'recipe'"]),
        ("run", {"checkpoint": "/m", "recipe": "", "workers": 0}, ["'run', workers: "]),
        (
            "analyze",
            {"checkpoint": "/m", "size": 3},
            ["'analyze'", "no parameter 'size'", " spectra"],
        ),
    ],
)
def test_wrong_jobs_are_refused(
    store: JobStore, kind: str, spec: dict[str, Any], facts: list[str]
) -> None:
    with raises_saying(JobError, *facts):
        store.submit(kind, spec, "x")
    assert store.list() == []


def test_a_claimed_job_runs_to_its_end(store: JobStore) -> None:
    number = submit(store)
    claim = take(store)
    assert claim.job.state == "running"
    assert claim.job.attempt == 1
    assert Claims(store.path, "me").claim() is None
    assert not claim.advance("analyze", 3, 10, "half", ((1.0, 0), (2.0, 3)))
    job = store.get(number)
    assert (job.step, job.done, job.total, job.message) == ("analyze", 3, 10, "half")
    assert job.fraction == pytest.approx(0.3)
    assert job.seconds_left is not None
    claim.complete({"answer": 42})
    job = store.get(number)
    assert (job.state, job.result, job.seconds_left) == ("done", {"answer": 42}, None)
    with pytest.raises(TakenOver):
        claim.advance("analyze", 4, 10, "more", ())


def test_jobs_are_taken_in_order(store: JobStore) -> None:
    numbers = [submit(store) for _ in range(3)]
    assert [take(store, f"worker{n}").job.id for n in range(3)] == numbers


def test_cancel_and_resume(store: JobStore) -> None:
    waiting = submit(store)
    assert store.cancel(waiting).state == "cancelled"
    with raises_saying(JobError, f"job {waiting} ", "cancelled"):
        store.cancel(waiting)
    assert store.resume(waiting).state == "queued"
    claim = take(store)
    assert store.cancel(waiting).state == "running"
    assert claim.advance("analyze", 0, 1, "", ())
    claim.cancel()
    assert store.get(waiting).state == "cancelled"
    job = store.resume(waiting)
    assert (job.state, job.cancel_requested, job.finished) == ("queued", False, None)
    with raises_saying(JobError, f"job {waiting} ", "queued", "failed", "cancelled"):
        store.resume(waiting)
    again = take(store)
    assert again.job.attempt == 2
    again.fail("it broke", "Traceback ...")
    job = store.get(waiting)
    assert (job.state, job.error) == ("failed", "it broke")
    assert all("Traceback" not in event.message for event in store.events(waiting))
    assert any("Traceback" in event.message for event in store.events(waiting, debug=True))


def test_cancel_where_the_worker_is_dead(store: JobStore) -> None:
    number = submit(store)
    take(store)
    silence(store, "me")
    assert store.cancel(number).state == "cancelled"


def test_events(store: JobStore) -> None:
    number = submit(store)
    claim = take(store)
    for line in range(5):
        claim.log(f"line {line}")
    messages = [event.message for event in store.events(number)]
    assert messages == ["filed", "started", *(f"line {line}" for line in range(5))]
    last = store.events(number)[-2]
    assert [event.message for event in store.events(number, after=last.seq)] == ["line 4"]
    assert [event.message for event in store.tail(number, 2)] == ["line 3", "line 4"]


def test_delete_removes_only_what_is_the_jobs(
    store: JobStore, workspace: Workspace, tmp_path: Path
) -> None:
    running, linked, kept = submit(store), submit(store), submit(store)
    take(store)
    with raises_saying(JobError, f"job {running} ", "running", "cancel"):
        store.delete(running)
    for number in (running, kept):
        workspace.run_dir(number).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    workspace.run_dir(linked).symlink_to(elsewhere)
    silence(store, "me")
    store.delete(running)
    store.delete(linked)
    assert not workspace.run_dir(running).exists()
    assert elsewhere.is_dir()
    assert workspace.run_dir(kept).is_dir()
    assert [job.id for job in store.list()] == [kept]
    with raises_saying(JobError, f"no job {running}"):
        store.get(running)
    assert store.events(running) == []
    store.delete(kept)
    assert submit(store) > kept  # numbers, and so directories, are never used twice


def test_a_silent_workers_job_is_taken_over_once(store: JobStore) -> None:
    number = submit(store)
    first = take(store, "first")
    rival = Claims(store.path, "rival")
    assert rival.claim() is None
    silence(store, "first")
    assert rival.claim(orphans=False) is None
    rival.beat(None, 0, 0.0)
    second = rival.claim()
    assert second is not None
    assert (second.job.id, second.job.attempt) == (number, 2)
    assert take_or_none(store, "third") is None
    for word in (
        lambda: first.advance("analyze", 1, 2, "", ()),
        lambda: first.log("still here"),
        lambda: first.complete({}),
        lambda: first.fail("no"),
        first.cancel,
        first.release,
    ):
        with pytest.raises(TakenOver):
            word()
    second.complete({})


def take_or_none(store: JobStore, worker_id: str) -> Claim | None:
    claims = Claims(store.path, worker_id)
    claims.beat(None, 0, 0.0)
    return claims.claim()


def test_a_job_that_kills_its_workers_is_given_up(store: JobStore) -> None:
    number = submit(store)
    for attempt in range(MAX_LOSSES + 1):
        assert take(store, f"worker{attempt}").job.attempt == attempt + 1
        silence(store, f"worker{attempt}")
    assert take_or_none(store, "last") is None
    job = store.get(number)
    assert job.state == "failed"
    assert job.error is not None
    assert "memory" in job.error
    store.resume(number)
    assert take_or_none(store, "last") is not None


def test_release_puts_back(store: JobStore) -> None:
    number = submit(store)
    take(store).release()
    assert store.get(number).state == "queued"
    assert take(store).job.attempt == 2


def test_workers(store: JobStore) -> None:
    assert store.worker() is None
    Claims(store.path, "dead").announce(pid=2**22 + 1)
    dead = store.worker()
    assert dead is not None
    assert not dead.alive
    number = submit(store)
    take(store)
    Claims(store.path, "me").beat(number, 5000, 90.0)
    Claims(store.path, "me").beat(number, 3000, 80.0)
    worker = store.worker()
    assert worker is not None
    assert worker.alive
    assert (worker.job_id, worker.memory, worker.cpu) == (number, 3000, 80.0)
    assert store.get(number).peak_memory == 5000
    Claims(store.path, "me").leave()
    assert [worker.id for worker in store.workers()] == ["dead"]


def _claim_all(path: Path, name: str, claimed: multiprocessing.Queue[tuple[str, int]]) -> None:
    claims = Claims(path, name)
    claims.beat(None, 0, 0.0)
    while (claim := claims.claim()) is not None:
        claimed.put((name, claim.job.id))
        claim.advance("analyze", 1, 2, "working", ())
        claim.complete({"by": name})


def test_processes_never_claim_the_same_job(store: JobStore) -> None:
    numbers = [submit(store) for _ in range(120)]
    forks.start()
    claimed = FORKS.Queue()
    rivals = [
        FORKS.Process(target=_claim_all, args=(store.path, f"rival{n}", claimed)) for n in range(3)
    ]
    for rival in rivals:
        rival.start()
    got = [claimed.get(timeout=60) for _ in numbers]
    for rival in rivals:
        rival.join(60)
        assert rival.exitcode == 0
    assert sorted(number for _, number in got) == numbers
    assert {job.attempt for job in store.list()} == {1}
    assert {job.state for job in store.list()} == {"done"}


def _open(path: Path) -> None:
    for _ in range(20):
        JobStore(path).submit("analyze", {"checkpoint": "/m"}, "x")


def test_many_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    forks.start()
    path = tmp_path / "new" / "ders.sqlite"
    openers = [FORKS.Process(target=_open, args=(path,)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
        assert opener.exitcode == 0
    assert len(JobStore(path).list()) == 60


def test_a_newer_or_broken_store_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    JobStore(newer)
    db = sqlite3.connect(newer)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with raises_saying(JobError, newer, "newer", "99", str(len(MIGRATIONS)), "workspace"):
        JobStore(newer)
    broken = tmp_path / "broken.sqlite"
    broken.write_text("no database " * 100)
    with raises_saying(JobError, broken, "not a database"):
        JobStore(broken)
    (tmp_path / "file").write_text("")
    with raises_saying(JobError, tmp_path / "file", "workspace"):
        JobStore(tmp_path / "file" / "ders.sqlite")

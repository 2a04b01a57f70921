"""Workers that are killed, and a worker whose disk is full: a death is told as what it was, and the
next worker goes on. (`test_kills.py` kills commands and workers at any instant.)"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs_support import FAST_RECIPE, make_checkpoint, wait_for
from support.messages import raises_saying
from support.small_disks import SmallDisk, small_disk

from ders_core.compute import oom
from ders_core.errors import JobError, StoreUnavailable
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs import process as processes
from ders_core.jobs.claims import MAX_LOSSES, Claims
from ders_core.jobs.deaths import Death, deaths_text
from ders_core.jobs.heartbeat import Heartbeat
from ders_core.jobs.kinds.analyze import Analyze
from ders_core.jobs.patience import Leaving, Patience
from ders_core.jobs.schema import connection, transaction
from ders_core.jobs.stop import Stop
from ders_core.jobs.worker import run_worker

# What is told of deaths


@pytest.mark.parametrize(
    ("deaths", "facts", "never"),
    [
        ([Death(-9, True)], ["SIGKILL", "kernel killed", "memory"], "probably"),
        ([Death(-9, False)] * 4, ["SIGKILL", "probably", "counts none"], "4 ×"),
        ([Death(-9)], ["SIGKILL", "probably lack of memory"], "kernel"),
        ([Death(-11, True)], ["SIGSEGV", "crashed", "logs/worker.log", "terminal"], "memory"),
        ([Death(-15)], ["SIGTERM", "asked it to end"], "memory"),
        ([Death(3)], ["exit status 3"], "memory"),
        ([Death(-7)], ["SIGBUS", "disk"], "memory"),
        ([Death(-200)], ["signal 200"], "memory"),
        ([Death()], ["nobody saw", "if memory ran out"], "probably"),
        ([], ["nobody saw"], "probably"),
        (
            [Death(-9), Death(-9), Death(-6)],
            ["2 × killed by SIGKILL", "1 × ", "SIGABRT"],
            "crashed",
        ),
    ],
)
def test_a_death_is_told_as_what_it_was(deaths: list[Death], facts: list[str], never: str) -> None:
    text = deaths_text(deaths)
    assert all(fact in text for fact in facts), text
    assert never not in text


def test_the_kernel_counts_its_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two, one, machine = (tmp_path / name for name in ("events", "oom_control", "vmstat"))
    monkeypatch.setattr(oom, "COUNTERS", (two, one, machine))
    monkeypatch.setattr(oom, "GROUPS", tmp_path / "nowhere")
    assert oom.oom_kills() is None
    two.write_text("low 0\nhigh 3\nmax 9\noom 4\noom_kill 2\noom_group_kill 0\n")
    one.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    machine.write_text("nr_free_pages 12\noom_kill 5\n")
    assert oom.oom_kills() == 10
    machine.write_text("nr_free_pages 12\n")
    assert oom.oom_kills() == 5


# Workers


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path))
    return Workspace(tmp_path / "workspace")


def test_the_parent_of_a_worker_knows_how_it_ended(workspace: Workspace) -> None:
    """A job that crashes its workers is given up with their signal, not with a guess."""
    store = JobStore(workspace.store_path)
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    for attempt in range(MAX_LOSSES + 1):
        crashed = subprocess.Popen(
            [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
        )
        claims = Claims(store.path, f"worker{attempt}")
        claims.announce(crashed.pid)
        claim = claims.claim()
        assert claim is not None
        assert claim.job.attempt == attempt + 1
        crashed.wait()
        processes._started.append(crashed)
        processes._ids[crashed.pid] = claims.worker_id
        processes._note_ends(store)
        assert crashed not in processes._started
    assert Claims(store.path, "last").claim() is None
    job = store.get(number)
    assert job.state == "failed"
    assert "SIGSEGV" in (job.error or "")
    assert "memory" not in (job.error or "")
    log = [event.message for event in store.events(number)]
    assert sum("its worker died: killed by SIGSEGV" in line for line in log) == MAX_LOSSES
    store.resume(number)
    with connection(store.path) as db:
        assert db.execute("SELECT deaths FROM jobs").fetchone()[0] == "[]"


def test_a_kill_of_the_kernel_is_seen_by_the_next_worker(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(workspace.store_path)
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    kills = 7
    monkeypatch.setattr("ders_core.jobs.claims.oom_kills", lambda: kills)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claims = Claims(store.path, "starved")
    claims.announce(ended.pid)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        claims.beat(number, 0, 0.0)
    assert claims.claim() is not None
    kills = 8
    assert Claims(store.path, "next").claim() is not None
    line = next(event.message for event in store.events(number) if "died" in event.message)
    assert "kernel killed processes for lack of memory" in line


def test_an_older_store_is_brought_up_to_date(workspace: Workspace) -> None:
    from ders_core.jobs.schema import MIGRATIONS

    workspace.path.mkdir()
    db = sqlite3.connect(workspace.store_path)
    db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
    db.execute("INSERT INTO jobs (kind, title, spec, created) VALUES ('demo', 'old', '{}', 1.0)")
    db.execute("INSERT INTO workers (id, pid, host, started, heartbeat) VALUES ('a', 1, 'b', 1, 1)")
    db.commit()
    db.close()
    store = JobStore(workspace.store_path)
    assert [job.title for job in store.list()] == ["old"]
    assert store.workers()[0].ended is None
    with connection(store.path) as db:
        columns = [row["name"] for row in db.execute("PRAGMA table_info(workers)")]
    assert "devices" not in columns


# A full disk under the job store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 4 << 20) as small:
        if not small.mounted:
            pytest.skip("wants a disk of its own, so the right to mount one")
        yield small


def test_a_worker_outlives_a_full_disk(
    disk: SmallDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Queued jobs wait until there is room again; the log says why."""
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path))
    monkeypatch.setattr("ders_core.jobs.patience.PAUSE", 0.2)
    monkeypatch.setattr("ders_core.jobs.schema.BUSY_SECONDS", 1.0)
    workspace = Workspace(disk.place / "workspace")
    store = JobStore(workspace.store_path)
    checkpoint = make_checkpoint(tmp_path / "moe", 1, 32, 48, 3)
    spec = {"checkpoint": str(checkpoint), "recipe": FAST_RECIPE, "workers": 1, "device": "cpu"}
    numbers = [store.submit("run", spec, "Pack").id for _ in range(2)]
    worker = threading.Thread(target=run_worker, args=(workspace,), kwargs={"stop_when_idle": True})
    with disk.room(0):
        worker.start()
        time.sleep(1.5)
        assert worker.is_alive()
    worker.join(60)
    assert not worker.is_alive()
    assert [store.get(number).state for number in numbers] == ["done", "done"]
    told = capfd.readouterr().err
    assert "full" in told
    assert "can be used again" in told


def test_a_job_whose_disk_becomes_full_fails_in_a_sentence(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as that can be written; and the worker goes on to the next job."""
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path))
    monkeypatch.setattr("ders_core.jobs.patience.PAUSE", 0.1)
    workspace = Workspace(disk.place / "workspace")
    store = JobStore(workspace.store_path)

    def swell(self: Analyze, context: object, spec: object) -> None:
        big = workspace.path / "big"
        try:
            with open(big, "wb") as file:
                while True:
                    file.write(bytes(65536))
        finally:
            threading.Timer(0.5, big.unlink).start()

    monkeypatch.setattr(Analyze, "run", swell)
    first, second = (store.submit("analyze", {"checkpoint": "/m"}, "Look").id for _ in range(2))
    run_worker(workspace, stop_when_idle=True)
    for number in (first, second):
        job = store.get(number)
        assert job.state == "failed"
        assert "full" in (job.error or "")
        assert str(workspace.path) in (job.error or "")
        assert "\n" not in (job.error or "")


def test_a_refused_store_is_waited_for_until_a_stop(workspace: Workspace) -> None:
    workspace.path.mkdir()
    stop = Stop()
    patience = Patience(workspace, stop)

    def call() -> None:
        stop.asked = True
        raise StoreUnavailable("full")

    with pytest.raises(Leaving):
        patience(call)
    workspace.path.rmdir()
    stop.asked = False
    with raises_saying(JobError, workspace.path, "removed"):
        patience(lambda: (_ for _ in ()).throw(StoreUnavailable("gone")))


def test_only_errors_that_may_pass_are_waited_for(workspace: Workspace, tmp_path: Path) -> None:
    store = JobStore(workspace.store_path)
    with pytest.raises(JobError) as caught, connection(store.path) as db:
        db.execute("SELECT nothing FROM nowhere")
    assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(StoreUnavailable), connection(tmp_path / "nowhere" / "x.sqlite") as db:
        db.execute("SELECT 1")
    with transaction(store.path), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ders_core.jobs.schema.BUSY_SECONDS", 0.01)
        with pytest.raises(StoreUnavailable), transaction(store.path):
            pytest.fail("two transactions at once")


def test_a_heartbeat_that_cannot_be_written_stops_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(workspace.store_path, "me")

    def refuse(*_: object) -> None:
        raise StoreUnavailable("full")

    monkeypatch.setattr(claims, "beat", refuse)
    with Heartbeat(claims, interval=0.01) as heart:
        heart.work_on(3)
        with pytest.raises(StoreUnavailable):
            heart.beat()
    wait_for(lambda: not heart._thread.is_alive())

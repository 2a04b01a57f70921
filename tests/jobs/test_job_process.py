"""Jobs are done in a process beside the worker, which stays small and outlives it."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
from support.jobs_support import (
    FAST_RECIPE,
    SLOW_RECIPE,
    child_of,
    claimed,
    contents,
    log_of,
    wait_for,
)

from ders_core.errors import JobError
from ders_core.files.output_lock import output_lock
from ders_core.jobs import JobStore, Workspace, start_worker_process
from ders_core.jobs.claims import Claim, Claims
from ders_core.jobs.job_process import IDLE_SECONDS, serve
from ders_core.jobs.patience import Leaving
from ders_core.jobs.perform import InThisProcess
from ders_core.jobs.worker import run_worker
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe


def submit_run(store: JobStore, checkpoint: Path, recipe: str) -> int:
    spec = {"checkpoint": str(checkpoint), "recipe": recipe, "workers": 1, "device": "cpu"}
    return store.submit("run", spec, "Pack").id


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def maps_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@contextmanager
def worker_process(workspace: Workspace) -> Iterator[int]:
    """The pid of a worker, which is asked to end after the block, and must."""
    worker = start_worker_process(workspace)
    try:
        yield worker.pid
        worker.terminate()
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()


def test_the_worker_imports_no_torch_and_two_jobs_in_a_row_import_it_once(
    workspace: Workspace, store: JobStore, small_checkpoint: Path, tmp_path: Path
) -> None:
    with worker_process(workspace) as pid:
        first = submit_run(store, small_checkpoint, FAST_RECIPE)
        wait_for(lambda: store.get(first).state == "done")
        (child,) = children_of(pid)
        second = submit_run(store, small_checkpoint, FAST_RECIPE)
        wait_for(lambda: store.get(second).state == "done")
        assert [process.pid for process in children_of(pid)] == [child.pid]
        assert maps_torch(child.pid)
        assert not maps_torch(pid)
        assert store.get(first).peak_memory > psutil.Process(pid).memory_info().rss
    assert not child.is_running()
    assert store.workers() == []
    compress(small_checkpoint, tmp_path / "direct", Recipe.from_yaml(FAST_RECIPE))
    for number in (first, second):
        packed = workspace.run_dir(number) / "packed"
        assert contents(packed) == contents(tmp_path / "direct")


def test_a_process_without_jobs_ends_and_the_next_job_gets_another(
    workspace: Workspace, store: JobStore, tmp_path: Path
) -> None:
    claims = Claims(store.path, "worker")
    claims.beat(None, 0, 0.0)
    seen = set()
    with child_of(workspace) as doer:
        for name in ("one", "two"):
            number = submit_run(store, tmp_path / name, FAST_RECIPE)
            claim = claims.claim()
            assert claim is not None
            doer.do(claim)
            assert str(tmp_path / name) in (store.get(number).error or "")
            doer.rest(IDLE_SECONDS / 2)
            (pid,) = job_processes(workspace)
            seen.add(pid)
            doer.rest(2 * IDLE_SECONDS)
            assert job_processes(workspace) == []
    assert len(seen) == 2


def test_a_process_that_crashes_costs_no_worker(
    workspace: Workspace, store: JobStore, slow_checkpoint: Path, tmp_path: Path
) -> None:
    """The job goes on in another process from what was finished, and its log says why."""
    with worker_process(workspace) as pid:
        number = submit_run(store, slow_checkpoint, SLOW_RECIPE)
        partial = workspace.run_dir(number) / "packed.partial"
        wait_for(lambda: len(list(partial.glob("*/*.json"))) >= 2)
        (child,) = children_of(pid)
        child.send_signal(signal.SIGSEGV)
        wait_for(lambda: store.get(number).attempt == 2)
        assert "died: killed by SIGSEGV (a library crashed)" in log_of(store, number)
        wait_for(lambda: store.get(number).state == "done")
        assert psutil.pid_exists(pid)
    assert "Fatal Python error: Segmentation fault" in workspace.worker_log.read_text()
    compress(slow_checkpoint, tmp_path / "direct", Recipe.from_yaml(SLOW_RECIPE))
    assert contents(workspace.run_dir(number) / "packed") == contents(tmp_path / "direct")


def test_a_cancelled_job_ends_and_the_process_takes_the_next(
    workspace: Workspace, store: JobStore, slow_checkpoint: Path, small_checkpoint: Path
) -> None:
    with worker_process(workspace) as pid:
        number = submit_run(store, slow_checkpoint, SLOW_RECIPE)
        wait_for(lambda: store.get(number).done >= 2)
        store.cancel(number)
        wait_for(lambda: store.get(number).state == "cancelled")
        (child,) = children_of(pid)
        following = submit_run(store, small_checkpoint, FAST_RECIPE)
        wait_for(lambda: store.get(following).state == "done")
        assert [process.pid for process in children_of(pid)] == [child.pid]


def test_a_process_that_is_asked_to_end_costs_no_attempt(
    workspace: Workspace, store: JobStore, slow_checkpoint: Path
) -> None:
    with worker_process(workspace) as pid:
        number = submit_run(store, slow_checkpoint, SLOW_RECIPE)
        wait_for(lambda: store.get(number).done >= 2)
        (child,) = children_of(pid)
        child.terminate()
        wait_for(lambda: store.get(number).state == "done")
        assert not child.is_running()
    assert store.get(number).attempt == 2
    log = log_of(store, number)
    assert "asked to stop" in log
    assert "died" not in log


def test_a_broken_store_ends_the_process_with_one_line(
    workspace: Workspace, store: JobStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_text("no database " * 100)
    with child_of(workspace) as doer, pytest.raises(JobError, match="not a database"):
        doer.do(Claim(broken, claimed(store).job))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "not a database" in line


def test_a_stop_while_the_store_cannot_be_used_is_no_error(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(self: InThisProcess, claim: Claim) -> None:
        raise Leaving

    monkeypatch.setattr(InThisProcess, "do", leave)
    jobs: queue.SimpleQueue[Claim] = queue.SimpleQueue()
    jobs.put(claimed(store))
    near, far = Pipe()
    with near, far:
        serve(jobs, far, workspace, None)
        assert near.recv() == "begun"
        assert not near.poll()


def test_nothing_is_imported_from_the_current_directory(
    workspace: Workspace, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a model's, with files of anybody in it."""
    imported = tmp_path / "imported"
    (tmp_path / "queue.py").write_text(f"open({str(imported)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    number = submit_run(store, tmp_path / "nowhere", FAST_RECIPE)
    with worker_process(workspace):
        wait_for(lambda: store.get(number).state == "failed" or imported.exists())
    assert not imported.exists()
    assert "nowhere" in (store.get(number).error or "")


@contextmanager
def locked(target: Path) -> Iterator[threading.Event]:
    """Another thread holds the lock of an output until the event is set."""
    target.parent.mkdir(parents=True)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with output_lock(target):
            held.set()
            free.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        yield free
    finally:
        free.set()
        holder.join()


def test_a_job_waits_for_the_process_that_died_over_it(
    workspace: Workspace, store: JobStore, small_checkpoint: Path
) -> None:
    """The first attempt does not: another process writes the output then."""
    number = submit_run(store, small_checkpoint, FAST_RECIPE)
    with locked(workspace.run_dir(number) / "packed") as free:
        run_worker(workspace, stop_when_idle=True)
        assert "being written by another process" in (store.get(number).error or "")
        store.resume(number)
        worker = threading.Thread(
            target=run_worker, args=(workspace,), kwargs={"stop_when_idle": True}
        )
        worker.start()
        wait_for(lambda: "waiting until the process" in store.get(number).message)
        free.set()
        worker.join()
        assert store.get(number).state == "done"


def test_a_job_waits_for_an_output_no_longer_than_a_minute(
    workspace: Workspace, store: JobStore, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.jobs.perform.BUSY_SECONDS", 0.6)
    number = submit_run(store, small_checkpoint, FAST_RECIPE)
    with locked(workspace.run_dir(number) / "packed"):
        for _ in range(2):
            run_worker(workspace, stop_when_idle=True)
            assert "being written by another process" in (store.get(number).error or "")
            store.resume(number)


def job_processes(workspace: Workspace) -> list[int]:
    """Children of this process that do the jobs of a workspace."""
    words = {"ders_core.jobs.job_process", str(workspace.path)}
    return [child.pid for child in psutil.Process().children() if words <= set(child.cmdline())]

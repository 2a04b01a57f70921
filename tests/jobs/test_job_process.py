"""Jobs are done in a process beside the worker, which stays small and outlives it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from support.jobs_support import FAST_RECIPE, SLOW_RECIPE, contents, wait_for

from ders_core.jobs import JobStore, Workspace, start_worker_process
from ders_core.jobs.claims import MAX_LOSSES, Claims, TakenOver
from ders_core.jobs.deaths import Death
from ders_core.jobs.job_process import IDLE_SECONDS, InChildProcess
from ders_core.jobs.patience import Patience
from ders_core.jobs.perform import Setting
from ders_core.jobs.stop import Stop
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
    stop = Stop()
    claims = Claims(store.path, "worker")
    claims.beat(None, 0, 0.0)
    setting = Setting(workspace, None, stop, Patience(workspace, stop))
    seen = set()
    with closing(InChildProcess(setting)) as doer:
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
        log = " / ".join(event.message for event in store.events(number))
        assert "its process died: killed by SIGSEGV (a library crashed)" in log
        wait_for(lambda: store.get(number).state == "done")
        assert psutil.pid_exists(pid)
    assert "Fatal Python error: Segmentation fault" in (workspace.logs / "worker.log").read_text()
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


def test_a_job_whose_processes_die_again_and_again_fails(store: JobStore) -> None:
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    claims = Claims(store.path, "worker")
    claims.beat(None, 0, 0.0)
    for attempt in range(MAX_LOSSES + 1):
        claim = claims.claim()
        assert claim is not None
        assert (claim.job.id, claim.job.attempt) == (number, attempt + 1)
        claim.lose(Death(-signal.SIGSEGV, False))
        with pytest.raises(TakenOver):
            claim.lose(Death())
    assert claims.claim() is None
    job = store.get(number)
    assert job.state == "failed"
    assert f"died {MAX_LOSSES + 1} times" in (job.error or "")
    assert "SIGSEGV" in (job.error or "")
    log = [event.message for event in store.events(number)]
    assert sum("its process died: killed by SIGSEGV" in line for line in log) == MAX_LOSSES


def test_a_process_that_cannot_be_started_is_a_sentence_of_the_job(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no_python"))
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    run_worker(workspace, stop_when_idle=True, doer=InChildProcess)
    job = store.get(number)
    assert job.state == "failed"
    assert "no_python" in (job.error or "")


def job_processes(workspace: Workspace) -> list[int]:
    """Children of this process that do the jobs of a workspace."""
    words = {"ders_core.jobs.job_process", str(workspace.path)}
    return [child.pid for child in psutil.Process().children() if words <= set(child.cmdline())]

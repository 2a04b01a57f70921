from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support.jobs_support import FAST_RECIPE, SLOW_RECIPE, contents, wait_for

from ders_core.errors import JobError
from ders_core.jobs import Job, JobStore, Workspace, ensure_worker, start_worker_process
from ders_core.jobs import process as processes
from ders_core.jobs.claims import Claims
from ders_core.jobs.context import TaskContext
from ders_core.jobs.heartbeat import Usage
from ders_core.jobs.job import process_lives
from ders_core.jobs.kinds.analyze import Analyze, AnalyzeSpec
from ders_core.jobs.worker import run_worker
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe


def submit_run(store: JobStore, checkpoint: Path, recipe: str, workers: int = 1) -> int:
    spec = {"checkpoint": str(checkpoint), "recipe": recipe, "workers": workers, "device": "cpu"}
    return store.submit("run", spec, "Pack").id


def finished(store: JobStore, number: int) -> bool:
    return store.get(number).state in ("done", "failed", "cancelled")


def staged(workspace: Workspace, number: int) -> dict[Path, int]:
    """Finished groups of an unfinished run, and when they were written."""
    partial = workspace.run_dir(number) / "packed.partial"
    return {file: file.stat().st_mtime_ns for file in partial.glob("*/*.json")}


def states(job: Job) -> dict[str, str]:
    return {step.name: step.state for step in job.steps}


def test_a_run_from_queue_to_result(
    workspace: Workspace, store: JobStore, small_checkpoint: Path, tmp_path: Path
) -> None:
    number = submit_run(store, small_checkpoint, FAST_RECIPE)
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert (job.state, job.error, job.attempt, job.device) == ("done", None, 1, "cpu")
    assert states(job) == {"compress": "done", "verify": "done", "evaluate": "skipped"}
    assert "no text" in job.steps[2].note
    assert job.peak_memory > 10_000_000
    result, place = job.result, workspace.run_dir(number)
    assert result is not None
    assert result["packed"] == str(place / "packed")
    assert result["bytes_before"] > result["bytes_after"] > 0
    assert result["ratio"] == pytest.approx(result["bytes_after"] / result["bytes_before"])
    assert len(result["report"]["entries"]) == 6
    assert result["verification"]["ok"]
    assert result["quality"] is None
    assert (place / "recipe.yaml").read_text() == FAST_RECIPE
    assert (place / "report.json").is_file()
    assert (place / "verification.json").is_file()
    compress(small_checkpoint, tmp_path / "direct", Recipe.from_yaml(FAST_RECIPE))
    assert contents(place / "packed") == contents(tmp_path / "direct")
    assert store.workers() == []


def test_a_library_that_cannot_be_imported_is_a_sentence_of_the_job(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(self: Analyze, context: TaskContext, spec: AnalyzeSpec) -> dict[str, object]:
        raise ImportError("libcudart.so.12 cannot be opened")

    numbers = [store.submit("analyze", {"checkpoint": "/m"}, "Look").id for _ in range(2)]
    monkeypatch.setattr("ders_core.jobs.kinds.analyze.Analyze.run", missing)
    run_worker(workspace, stop_when_idle=True)
    for number in numbers:
        job = store.get(number)
        assert job.state == "failed"
        assert "libcudart.so.12" in (job.error or "")
    assert store.workers() == []


def test_errors_become_sentences(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = submit_run(store, tmp_path / "nowhere", FAST_RECIPE)
    recipe = submit_run(store, tmp_path, "name: x\nrules: [{codec: magic}]\n")
    outside = store.submit("export", {"packed": "/proc", "out": "/proc/x"}, "Export").id

    def stumble(self: Analyze, context: TaskContext, spec: AnalyzeSpec) -> dict[str, object]:
        raise RuntimeError("the floor\nis wet")

    monkeypatch.setattr("ders_core.jobs.kinds.analyze.Analyze.run", stumble)
    bug = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    run_worker(workspace, stop_when_idle=True)
    jobs = [store.get(number) for number in (missing, recipe, outside, bug)]
    assert {job.state for job in jobs} == {"failed"}
    errors = [job.error or "" for job in jobs]
    assert str(tmp_path / "nowhere") in errors[0]
    assert errors[1].startswith("line 2")
    assert "/proc" in errors[2]
    assert "DERS_ROOTS" in errors[2]
    assert "RuntimeError: the floor;" in errors[3]
    assert "is wet" not in errors[3]
    assert "stumble" in store.events(bug, debug=True)[-2].message
    assert not any("Traceback" in event.message for event in store.events(bug))
    assert states(jobs[0])["compress"] == "failed"


def test_time_left_is_told_from_the_units_that_are_worked_on(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may count bytes first, and then tokens, of which there may be more or fewer."""
    monkeypatch.setattr("ders_core.jobs.context.WRITE_EVERY", 0.0)
    monkeypatch.setattr("ders_core.jobs.pace.SPACING", 0.0)
    counted: list[list[int]] = []

    def count(self: Analyze, context: TaskContext, spec: AnalyzeSpec) -> dict[str, object]:
        for done, total in ((10, 100), (50, 100), (60, 300), (70, 300), (5, 300), (9, 300)):
            context.progress(done, total, "counting")
            counted.append([units for _, units in store.get(context.job.id).samples])
        raise JobError("that is all")

    monkeypatch.setattr("ders_core.jobs.kinds.analyze.Analyze.run", count)
    store.submit("analyze", {"checkpoint": "/m"}, "Look")
    run_worker(workspace, stop_when_idle=True)
    assert counted == [[10], [10, 50], [60], [60, 70], [5], [5, 9]]


def test_memory_is_named(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swell(self: Analyze, context: TaskContext, spec: AnalyzeSpec) -> dict[str, object]:
        raise MemoryError

    monkeypatch.setattr("ders_core.jobs.kinds.analyze.Analyze.run", swell)
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    run_worker(workspace, stop_when_idle=True)
    assert "memory" in (store.get(number).error or "")


def test_cancel_then_resume_keeps_finished_groups(
    workspace: Workspace, store: JobStore, slow_checkpoint: Path
) -> None:
    number = submit_run(store, slow_checkpoint, SLOW_RECIPE)
    worker = threading.Thread(target=run_worker, args=(workspace,), kwargs={"stop_when_idle": True})
    worker.start()
    wait_for(lambda: len(staged(workspace, number)) >= 2)
    store.cancel(number)
    worker.join(30)
    job = store.get(number)
    assert (job.state, job.error) == ("cancelled", None)
    assert states(job)["compress"] == "cancelled"
    kept = staged(workspace, number)
    assert 2 <= len(kept) < 12
    store.resume(number)
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert (job.state, job.attempt) == ("done", 2)
    assert any(f"{12 - len(kept)} groups" in event.message for event in store.events(number))


def test_a_finished_step_is_not_done_again(
    workspace: Workspace, store: JobStore, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise JobError("not today")

    number = submit_run(store, small_checkpoint, FAST_RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr("ders_core.pipeline.verify.verify", stop)
        run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert states(job) == {"compress": "done", "verify": "failed", "evaluate": "waiting"}
    seconds = job.steps[0].seconds
    store.resume(number)
    monkeypatch.setattr("ders_core.pipeline.compress.compress", stop)
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "done"
    assert job.steps[0].seconds == seconds


@pytest.mark.slow
def test_workers_that_are_killed_or_stopped_keep_what_was_finished(
    workspace: Workspace, store: JobStore, slow_checkpoint: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle, then SIGTERM: each worker goes on from the finished groups, and the
    bytes are those of an undisturbed run."""
    number = submit_run(store, slow_checkpoint, SLOW_RECIPE, workers=2)
    first = start_worker_process(workspace)
    wait_for(lambda: len(staged(workspace, number)) >= 3)
    (child,) = psutil.Process(first.pid).children(recursive=True)  # whose threads do the work
    state = store.worker()
    assert state is not None
    assert (state.alive, state.job_id, state.pid) == (True, number, first.pid)
    assert state.memory > child.memory_info().rss / 2 > 50_000_000
    assert os.getsid(first.pid) == first.pid
    first.kill()
    first.wait()
    kept = staged(workspace, number)
    assert 3 <= len(kept) < 12
    assert store.get(number).state == "running"

    second = start_worker_process(workspace)
    wait_for(lambda: store.get(number).attempt == 2)
    wait_for(lambda: len(staged(workspace, number)) > len(kept))
    _stop(second)
    job = store.get(number)
    assert (job.state, job.error) == ("queued", None)
    assert states(job)["compress"] == "waiting"
    assert second.pid not in {worker.pid for worker in store.workers()}
    more = staged(workspace, number)
    assert kept.items() < more.items()
    assert len(more) < 12

    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert (job.state, job.attempt) == ("done", 3)
    assert any(f"{12 - len(more)} groups" in event.message for event in store.events(number))
    compress(slow_checkpoint, tmp_path / "direct", Recipe.from_yaml(SLOW_RECIPE))
    assert contents(workspace.run_dir(number) / "packed") == contents(tmp_path / "direct")


@pytest.mark.slow
def test_one_worker_is_enough(workspace: Workspace) -> None:
    workers = [ensure_worker(workspace) for _ in range(3)]
    assert len({worker.pid for worker in workers}) == 1
    first = workers[0]
    assert first.alive
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not process_lives(first.pid))
    another = ensure_worker(workspace)
    assert another.pid != first.pid
    for started in processes._started:
        _stop(started)
    processes._started.clear()


def test_an_idle_worker_leaves_with_its_companion(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.jobs.worker.LINGER", 0.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    Claims(store.path, "left alone").announce(os.getpid(), companion=ended.pid)
    run_worker(workspace, worker_id="left alone")
    assert store.workers() == []


def test_a_worker_left_alone_is_adopted(workspace: Workspace, store: JobStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claims = Claims(store.path, "left alone")
    claims.announce(os.getpid(), companion=ended.pid)
    worker = ensure_worker(workspace)
    assert (worker.id, worker.companion) == ("left alone", os.getpid())
    assert not claims.leave_without_companion()


def test_usage_counts_children() -> None:
    usage = Usage()
    alone, _ = usage.measure()
    with subprocess.Popen(
        [sys.executable, "-c", "b = bytearray(b'x') * 80_000_000; input()"],
        stdin=subprocess.PIPE,
    ) as child:
        wait_for(lambda: usage.measure()[0] > alone + 60_000_000)
        child.communicate(b"\n")
    assert process_lives(os.getpid())
    assert not process_lives(child.pid)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(30)

"""A wait for a job ends when the job cannot get there, and only then."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import job_waits
from support.job_waits import wait_for_job
from support.studio_process import Studio

from ders_core.jobs.claims import Claims


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A living process, for an app or a worker."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def studio(tmp_path: Path, process: subprocess.Popen[bytes]) -> Studio:
    """A store with one job that waits, and a process in the place of the app."""
    studio = Studio("", tmp_path, process, tmp_path / "app.log")
    studio.store.submit("analyze", {"checkpoint": "/m"}, "Look")
    return studio


@pytest.fixture
def worker(studio: Studio, process: subprocess.Popen[bytes]) -> Claims:
    claims = Claims(studio.store.path, "worker")
    claims.announce(process.pid)
    return claims


def test_what_was_waited_for_is_returned(studio: Studio, worker: Claims) -> None:
    claim = worker.claim()
    assert claim is not None
    claim.advance("analyze", 3, 10, "step 3 of 10", [])
    assert wait_for_job(studio, "analyze", lambda job: job.done >= 3).message == "step 3 of 10"
    claim.complete({"identity": "abc"})
    assert wait_for_job(studio, "analyze").result == {"identity": "abc"}


def test_a_failed_job_ends_the_wait(studio: Studio, worker: Claims) -> None:
    claim = worker.claim()
    assert claim is not None
    claim.fail("the disk is full")
    with pytest.raises(AssertionError, match="the disk is full"):
        wait_for_job(studio, "analyze")


def test_a_job_that_is_done_too_soon_ends_the_wait(studio: Studio, worker: Claims) -> None:
    claim = worker.claim()
    assert claim is not None
    claim.complete({})
    with pytest.raises(AssertionError, match="done"):
        wait_for_job(studio, "analyze", lambda job: job.state == "running")


def test_a_dead_worker_ends_the_wait(studio: Studio, worker: Claims, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    worker.leave()
    Claims(studio.store.path, "dead").announce(ended.pid)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text("Killed\n")
    with pytest.raises(AssertionError, match=r"worker has ended:\nKilled"):
        wait_for_job(studio, "analyze")


def test_stillness_ends_the_wait(
    studio: Studio, worker: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_waits, "STILLNESS", 0.5)
    with pytest.raises(AssertionError, match="nothing moved"):
        wait_for_job(studio, "analyze")

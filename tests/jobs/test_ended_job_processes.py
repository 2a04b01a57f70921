"""Processes beside the worker that die, that are asked to end, or that cannot be started."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.jobs_support import child_of, claimed, log_of

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import MAX_LOSSES, Claim, Claims, TakenOver
from ders_core.jobs.deaths import ASKING, Death
from ders_core.jobs.job_process import InChildProcess
from ders_core.jobs.process import package_command, package_environment
from ders_core.jobs.worker import run_worker

ONE_JOB = """
import os, signal, sys
from multiprocessing.connection import Connection

pipe = Connection(int(sys.argv[sys.argv.index("--claims") + 1]))
pipe.recv_bytes()
pipe.send("begun")
pipe.send("takes another")
pipe.poll(None)
signal.signal(signal.SIGINT, signal.SIG_DFL)
"""
"""A program that says that it did one job, and does nothing with the next."""


@pytest.fixture
def ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """In place of Python, a program that leaves a process behind and ends with status 3, or another
    one that is asked for."""
    program, left = tmp_path / "ends", tmp_path / "left"
    end = getattr(request, "param", "exit 3")
    program.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {left}\n{end}\n")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    yield
    psutil.Process(int(left.read_text())).kill()


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
    assert f"its process died {MAX_LOSSES + 1} times" in (job.error or "")
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


def test_a_process_that_ends_at_once_is_not_started_for_ever(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("true"))
    number = store.submit("analyze", {"checkpoint": "/m"}, "Look").id
    run_worker(workspace, stop_when_idle=True, doer=InChildProcess)
    job = store.get(number)
    assert job.state == "failed"
    assert f"died {MAX_LOSSES + 1} times" in (job.error or "")


@pytest.mark.parametrize("signal_number", [0, *ASKING])
def test_an_idle_process_that_is_asked_to_end_as_a_job_comes_costs_no_attempt(
    workspace: Workspace,
    store: JobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_number: int,
) -> None:
    """0: it ends by itself, as one that catches the signal."""
    program = tmp_path / "one_job"
    end = f"os.kill(os.getpid(), {int(signal_number)})\n" if signal_number else ""
    program.write_text(f"#!{sys.executable}{ONE_JOB}{end}")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    first = claimed(store)
    with child_of(workspace) as doer:
        doer.do(first)
        first.complete({})
        second = claimed(store)
        doer.do(second)
    assert store.get(second.job.id).state == "queued"
    log = log_of(store, second.job.id)
    assert "asked to stop" in log
    assert "died" not in log


@pytest.mark.parametrize("answer", ["begun", "what no version says", True])
def test_a_job_that_ends_its_process_is_a_loss(
    workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """Else a job that ends so each time would be begun for ever."""
    near, far = Pipe()
    monkeypatch.setattr("ders_core.jobs.job_process.Pipe", lambda: (near, far))
    monkeypatch.setattr("sys.executable", shutil.which("true"))
    far.send(answer)
    claim = claimed(store)
    with child_of(workspace) as doer:
        doer.do(claim)
    assert "died: " in log_of(store, claim.job.id)


def test_a_worker_of_a_version_before_is_refused(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would read an answer as that of the version before."""
    command = [*package_command("ders_core.jobs.job_process"), "--workspace", str(workspace.path)]
    refused = subprocess.run([*command, "--pipe", "0"], env=package_environment(), check=False)
    assert refused.returncode == 2
    assert "--claims" in capfd.readouterr().err


def test_a_process_that_cannot_read_its_job_ends(
    workspace: Workspace, store: JobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    claim = claimed(store)
    with child_of(workspace) as doer:
        doer.do(Unreadable(claim.path, claim.job))
    assert "no_such_module" in capfd.readouterr().err
    assert store.get(claim.job.id).state == "queued"
    assert "died: with exit status 1" in log_of(store, claim.job.id)


class Unreadable(Claim):
    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, ("no_such_module",)


@pytest.mark.parametrize(
    ("ends_at_once", "told"),
    [
        ("exit 3", "died: with exit status 3"),
        ("exit 0", "died: with exit status 0"),
        ("kill -TERM $$", "died: killed by SIGTERM"),
    ],
    indirect=["ends_at_once"],
)
@pytest.mark.usefixtures("ends_at_once")
def test_a_process_that_ended_is_seen_though_another_one_holds_its_pipe(
    workspace: Workspace, store: JobStore, told: str
) -> None:
    claim = claimed(store)
    with child_of(workspace) as doer:
        doer.do(claim)
    assert store.get(claim.job.id).state == "queued"
    assert told in log_of(store, claim.job.id)


@pytest.mark.usefixtures("ends_at_once")
def test_a_process_that_ended_after_its_job_is_no_loss(
    workspace: Workspace, store: JobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    claim = claimed(store)
    claim.complete({})
    with child_of(workspace) as doer:
        doer.do(claim)
    assert store.get(claim.job.id).state == "done"
    assert capfd.readouterr().err == ""

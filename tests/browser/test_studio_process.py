"""A studio that a test started leaves no process behind, however the test ends."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from support.job_waits import wait_for_job
from support.studio_process import processes_of, running_studio

from ders_core.jobs.job import process_lives

ENDLESS = """
name: endless
experts: 2
top_k: 1
forms: [{{form: vanilla}}]
data: {{texts: [{text}], window: 32}}
training: {{steps: 1000000}}
"""


class Interruption(BaseException):
    """As KeyboardInterrupt, but no real one is taken for it."""


@pytest.mark.slow
def test_no_process_outlives_its_studio(
    tmp_path: Path, dense_parent_dir: Path, tiny_text: str
) -> None:
    text = tmp_path / "text.txt"  # in the studio's current directory, so within its roots
    text.write_text(tiny_text, encoding="utf-8")
    dense = shutil.copytree(dense_parent_dir, tmp_path / "dense")
    endless = {"dense": str(dense), "config": ENDLESS.format(text=text)}
    with suppress(Interruption), running_studio(tmp_path) as studio:
        studio.store.submit("upcycle", endless)
        job = wait_for_job(studio, "upcycle", lambda job: job.state == "running")
        worker = next(worker for worker in studio.store.workers() if worker.id == job.worker)
        pids = {process.pid for process in processes_of(studio.workspace)}
        assert {studio.app.pid, worker.pid} < pids  # and the server
        assert str(studio.workspace) in _words_of_all_commands()
        assert studio.address in studio.log.read_text()
        raise Interruption
    assert processes_of(studio.workspace) == []
    assert not any(map(process_lives, pids))
    assert str(studio.workspace) not in _words_of_all_commands()


def _words_of_all_commands() -> set[str]:
    """What stands in the command lines of every process of this machine."""
    commands = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return {word for command in commands for word in command or ()}

"""Asking as a job: its title, what it refuses, and what it files as its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kinds.ask import TITLE, Ask, AskResult
from ders_core.jobs.worker import run_worker
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets


@pytest.mark.parametrize("prompt", ["a\nb\tc", "x" * 300, "\u202ea\x1b[31m", " \n"])
def test_any_prompt_makes_a_title_of_one_line(prompt: str) -> None:
    title = Ask().title(Ask().parse({"packed": "/p", "original": "/o", "prompt": prompt}))
    assert title.strip() == title
    assert title.isprintable()
    assert len(title) <= len("Ask: ") + TITLE


@pytest.mark.parametrize("where", ["packed", "original"])
def test_models_outside_the_roots_are_refused(workspace: Workspace, where: str) -> None:
    store = JobStore(workspace.store_path)
    paths = {name: str(workspace.path / name) for name in ("packed", "original")}
    number = store.submit("ask", paths | {"prompt": "x", where: "/etc"}).id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "failed"
    assert "/etc" in (job.error or "")


def test_a_job_asks_both(workspace: Workspace, mixtral_dir: Path) -> None:
    packed = workspace.path / "packed"
    compress(mixtral_dir, packed, presets()["lossless"])
    store = JobStore(workspace.store_path)
    spec = {"packed": str(packed), "original": str(mixtral_dir), "prompt": "The river"}
    number = store.submit("ask", spec | {"max_tokens": 6}).id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "done", job.error
    result = AskResult.of(job)
    assert result is not None
    assert result.are_same
    assert result.original.kl == 0
    assert 1 <= len(result.original.tokens) <= 6

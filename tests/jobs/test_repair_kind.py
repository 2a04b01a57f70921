"""A repair as a job: what it takes, what it refuses, and one of a few steps."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.repair_support import write_texts

from ders_core.errors import JobError
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.kinds.repair import Repair, RepairResult
from ders_core.jobs.worker import run_worker
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import presets


@pytest.fixture
def spec(
    workspace: Workspace, models: dict[str, Any], tokenizer: Any, tiny_text: str
) -> dict[str, Any]:
    """Of a tiny Mixtral whose experts matter, packed in one bit."""
    model = deepcopy(models["mixtral"])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.mul_(40)
    original, packed = workspace.path / "loud", workspace.path / "small"
    model.to(torch.bfloat16).save_pretrained(original)
    tokenizer.save_pretrained(original)
    compress(original, packed, presets()["quantized-1bit"])
    text, heldout = write_texts(workspace.path, tiny_text)
    return {
        "checkpoint": str(packed),
        "original": str(original),
        "text": [str(text)],
        "heldout": str(heldout),
        "steps": 8,
        "batch": 4,
        "window": 32,
    }


def do(workspace: Workspace, spec: dict[str, Any]) -> Job:
    store = JobStore(workspace.store_path)
    number = store.submit("repair", spec, "small repaired").id
    run_worker(workspace, stop_when_idle=True)
    return store.get(number)


def test_a_job_repairs_and_verifies(workspace: Workspace, spec: dict[str, Any]) -> None:
    job = do(workspace, spec)
    assert job.state == "done", job.error
    result = RepairResult.of(job)
    assert result is not None
    assert result.repaired.kl_after.mean < result.repaired.kl_before.mean
    assert result.measured is not None
    assert result.measured.kl == pytest.approx(result.repaired.kl_after.mean)
    assert verify(result.packed, spec["original"]).ok
    written = PackedCheckpoint(result.packed)
    assert written.manifest.repairs[0].steps == 8
    assert result.bytes_after == written.bytes_total
    assert not (Path(result.packed) / ".training").exists()


@pytest.mark.parametrize("where", ["checkpoint", "original", "text", "heldout"])
def test_files_outside_the_roots_are_refused(workspace: Workspace, where: str) -> None:
    inside = {"checkpoint": "x", "original": "x", "text": "x", "heldout": "x"}
    paths = {name: str(workspace.path / name) for name in inside}
    workspace.path.mkdir(exist_ok=True)
    for name in ("text", "heldout"):
        Path(paths[name]).write_text("Some words.")
    job = do(workspace, paths | {where: "/etc/hostname"})
    assert job.state == "failed"
    assert "/etc/hostname" in (job.error or "")


def test_what_a_job_of_this_kind_takes() -> None:
    with raises_saying(JobError, "'repair' needs", "'original'"):
        Repair().parse({"checkpoint": "/p", "text": "/t"})
    with raises_saying(JobError, "'repair', steps: "):
        Repair().parse({"checkpoint": "/p", "original": "/o", "text": "/t", "steps": 0})

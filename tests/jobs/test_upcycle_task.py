"""Upcycling as a job: what it takes, what it refuses, and a training of four steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ders_core.checkpoint import Checkpoint
from ders_core.errors import JobError
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.specs import STEPS, UpcycleSpec, parse_spec
from ders_core.jobs.worker import run_worker
from ders_core.upcycle import Data, UpcycleConfig
from ders_core.upcycle.history import read_history

STEPS_TRAINED = 4


def config(text: Path, heldout: Path | None = None) -> UpcycleConfig:
    return UpcycleConfig.model_validate(
        {
            "name": "tiny",
            "experts": 3,
            "data": Data(texts=(text,), heldout=heldout, window=32),
            "training": {"steps": STEPS_TRAINED, "batch": 2, "warmup": 1, "heldout_tokens": 128},
        }
    )


def do(workspace: Workspace, spec: dict[str, Any]) -> Job:
    store = JobStore(workspace.store_path)
    number = store.submit("upcycle", spec, "tiny").id
    run_worker(workspace, stop_when_idle=True)
    return store.get(number)


@pytest.fixture
def text(tmp_path: Path, tiny_text: str) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


def test_what_a_job_of_this_kind_takes() -> None:
    spec = parse_spec("upcycle", {"dense": "/d", "config": "name: x"})
    assert spec == UpcycleSpec(dense="/d", config="name: x", name="", device="auto")
    assert STEPS["upcycle"] == ("train", "verify")
    with pytest.raises(JobError, match="'upcycle', config: field required"):
        parse_spec("upcycle", {"dense": "/d"})
    with pytest.raises(JobError, match="device"):
        parse_spec("upcycle", {"dense": "/d", "config": "", "device": "tpu"})


@pytest.mark.parametrize("where", ["dense", "texts", "heldout"])
def test_files_outside_the_roots_are_refused(
    workspace: Workspace, dense_parent_dir: Path, text: Path, where: str
) -> None:
    outside = Path("/etc/hostname")
    chosen = config(outside if where == "texts" else text, outside if where == "heldout" else None)
    dense = "/etc" if where == "dense" else str(dense_parent_dir)
    job = do(workspace, {"dense": dense, "config": chosen.to_yaml(), "device": "cpu"})
    assert job.state == "failed"
    assert "lies outside the folders that may be used here" in (job.error or "")
    assert [step.state for step in job.steps] == ["waiting", "waiting"]


def test_a_configuration_that_cannot_be_read_fails_with_its_line(
    workspace: Workspace, dense_parent_dir: Path
) -> None:
    text = "name: x\nexperts: 1\ndata: {texts: [a.txt]}\n"
    job = do(workspace, {"dense": str(dense_parent_dir), "config": text})
    assert (job.state, (job.error or "").split(":")[0]) == ("failed", "line 2")


@pytest.mark.slow
def test_four_steps_through_a_worker(
    workspace: Workspace, dense_parent_dir: Path, text: Path
) -> None:
    chosen = config(text, text)
    spec = {"dense": str(dense_parent_dir), "config": chosen.to_yaml(), "device": "cpu"}
    job = do(workspace, spec)
    assert (job.state, job.error) == ("done", None)
    assert [step.state for step in job.steps] == ["done", "done"]
    result = job.result or {}
    place = workspace.run_dir(job.id)
    packed = place / "packed"
    assert result["packed"] == str(packed)
    assert result["upcycled"]["steps"] == STEPS_TRAINED
    assert result["upcycled"]["perplexity"] > 1
    assert result["verification"]["ok"]
    assert result["ratio"] == result["bytes_after"] / result["bytes_before"]
    assert UpcycleConfig.from_yaml((place / "upcycle.yaml").read_text("utf-8")) == chosen
    opened = Checkpoint(packed)
    assert (opened.num_experts, len(opened.moe_layers)) == (3, 2)
    told = read_history(packed)
    assert told.steps["step"].tolist() == list(range(1, STEPS_TRAINED + 1))
    assert len(told.loads) == STEPS_TRAINED * 2 * 3

"""Upcycling as a job: what it takes, what it refuses, and a training of four steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying

from ders_core.errors import JobError
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.kinds.upcycle import Upcycle, UpcycleResult, UpcycleSpec
from ders_core.jobs.schema import transaction
from ders_core.jobs.worker import run_worker
from ders_core.packed.reader import PackedCheckpoint
from ders_core.upcycle import Data, DenseModel, Training, UpcycleConfig, predict
from ders_core.upcycle.history import HistoryWriter, Moment, read_history

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
    spec = Upcycle().parse({"dense": "/d", "config": "name: x"})
    assert spec == UpcycleSpec(dense="/d", config="name: x", name="", device="auto")
    assert Upcycle.steps == ("train", "verify")
    with raises_saying(JobError, "'upcycle' needs", "'config'"):
        Upcycle().parse({"dense": "/d"})
    with raises_saying(JobError, "'upcycle', device: ", "'cpu'", "'tpu'"):
        Upcycle().parse({"dense": "/d", "config": "", "device": "tpu"})


@pytest.mark.parametrize("where", ["dense", "texts", "heldout"])
def test_files_outside_the_roots_are_refused(
    workspace: Workspace, dense_parent_dir: Path, text: Path, where: str
) -> None:
    outside = Path("/etc/hostname")
    chosen = config(outside if where == "texts" else text, outside if where == "heldout" else None)
    dense = "/etc" if where == "dense" else str(dense_parent_dir)
    job = do(workspace, {"dense": dense, "config": chosen.to_yaml(), "device": "cpu"})
    assert job.state == "failed"
    assert ("/etc" if where == "dense" else str(outside)) in (job.error or "")
    assert "DERS_ROOTS" in (job.error or "")
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
    result = UpcycleResult.of(job)
    assert result is not None
    place = workspace.run_dir(job.id)
    packed = place / "packed"
    assert result.packed == str(packed)
    assert result.upcycled.steps == STEPS_TRAINED
    assert (result.upcycled.perplexity or 0) > 1
    assert result.verification is not None
    assert result.verification.ok
    predicted = predict(DenseModel.open(dense_parent_dir), chosen)
    assert result.upcycled.trained == predicted.trained
    assert result.ratio == result.bytes_after / result.bytes_before
    assert UpcycleConfig.from_yaml((place / "upcycle.yaml").read_text("utf-8")) == chosen
    groups = PackedCheckpoint(packed).manifest.groups
    assert {(group.layer, group.projection) for group in groups} == {
        (layer, projection) for layer in (0, 1) for projection in ("gate", "up", "down")
    }
    history = read_history(packed)
    assert history.steps["step"].tolist() == list(range(1, STEPS_TRAINED + 1))
    assert len(history.loads) == STEPS_TRAINED * 2 * 3


@pytest.mark.slow
def test_a_stopped_training_goes_on_where_it_was(
    workspace: Workspace, dense_parent_dir: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, add_step = 12, HistoryWriter.add_step
    chosen = config(text).model_copy(
        update={"training": Training(steps=steps, batch=1, save_every=steps)}
    )
    spec = {"dense": str(dense_parent_dir), "config": chosen.to_yaml(), "device": "cpu"}
    store = JobStore(workspace.store_path)
    number = store.submit("upcycle", spec, "tiny").id
    packed = workspace.run_dir(number) / "packed"

    def stop(history: HistoryWriter, moment: Moment) -> None:
        add_step(history, moment)
        if moment.step == 3:
            store.cancel(number)

    monkeypatch.setattr(HistoryWriter, "add_step", stop)
    monkeypatch.setattr("ders_core.jobs.context.WRITE_EVERY", 0.0)
    run_worker(workspace, stop_when_idle=True)
    assert store.get(number).state == "cancelled"
    before = read_history(packed).steps
    assert 3 <= len(before) < steps
    store.resume(number)
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert (job.state, job.error) == ("done", None)
    after = read_history(packed).steps
    assert after["step"].tolist() == list(range(1, steps + 1))
    assert after["loss"].tolist()[: len(before)] == before["loss"].tolist()


@pytest.mark.slow
def test_a_result_that_was_lost_with_its_worker_is_read_again(
    workspace: Workspace, dense_parent_dir: Path, text: Path
) -> None:
    spec = {"dense": str(dense_parent_dir), "config": config(text).to_yaml(), "device": "cpu"}
    store = JobStore(workspace.store_path)
    job = do(workspace, spec)
    place = workspace.run_dir(job.id)
    (place / "result.json").unlink()
    (place / "verification.json").unlink()
    with transaction(store.path) as db:
        db.execute("UPDATE jobs SET state = 'cancelled' WHERE id = ?", (job.id,))
    written = (place / "packed" / "config.json").stat().st_mtime_ns
    store.resume(job.id)
    run_worker(workspace, stop_when_idle=True)
    again = store.get(job.id)
    assert (again.state, again.result) == ("done", job.result)
    assert (place / "packed" / "config.json").stat().st_mtime_ns == written

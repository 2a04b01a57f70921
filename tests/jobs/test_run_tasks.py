"""Tasks of a run: checked before it compresses, and asked after its text is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.jobs_support import FAST_RECIPE
from support.odd_models import own_code_model

from ders_core.errors import EvaluationError
from ders_core.evaluate.tasks import check_tasks
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.worker import run_worker
from ders_core.pipeline.task_scores import TaskScore


class Asked:
    """In place of lm-eval: fails the first time. tasks: what it was asked each time."""

    def __init__(self) -> None:
        self.tasks: list[Sequence[str]] = []

    def evaluate_tasks(
        self, packed: Path, tasks: Sequence[str], original: Path, **options: Any
    ) -> tuple[TaskScore, ...]:
        self.tasks.append(tasks)
        if len(self.tasks) == 1:
            raise EvaluationError("the data set is not there")
        return (TaskScore(task="t", metric="acc", value=0.5, samples=4),)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr("ders_core.evaluate.tasks.check_tasks", lambda *tasks, **options: None)
    monkeypatch.setattr("ders_core.evaluate.tasks.evaluate_tasks", asked.evaluate_tasks)
    return asked


@pytest.fixture
def spec(mixtral_dir: Path) -> dict[str, Any]:
    return {"checkpoint": str(mixtral_dir), "recipe": FAST_RECIPE, "workers": 1, "device": "cpu"}


def test_what_a_text_measured_is_kept_where_tasks_fail(
    workspace: Workspace,
    store: JobStore,
    asked: Asked,
    spec: dict[str, Any],
    tiny_text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, file, link = (tmp_path / name for name in ("text.txt", "own.yaml", "link.yaml"))
    text.write_text(tiny_text)
    file.touch()
    link.symlink_to(file)
    more = {"text": str(text), "max_tokens": 100, "tasks": [str(link), "arc_easy"]}
    number = store.submit("run", spec | more, "x").id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "failed"
    assert "data set" in (job.error or "")
    quality = json.loads((workspace.run_dir(number) / "quality.json").read_text())
    assert quality["kl"] >= 0

    monkeypatch.setattr("ders_core.evaluate.evaluate", None)  # it is not measured again
    store.resume(number)
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.result is not None, job.error
    assert job.result["quality"] == quality
    assert [score["value"] for score in job.result["tasks"]] == [0.5]
    assert asked.tasks == [(str(file), "arc_easy")] * 2  # the file that was allowed


@pytest.mark.parametrize("damage", ["tokenizer", "trust_remote_code"])
def test_a_model_that_cannot_be_asked_is_refused_before_it_is_compressed(
    damage: str,
    workspace: Workspace,
    store: JobStore,
    asked: Asked,
    spec: dict[str, Any],
    mixtral_dir: Path,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if damage == "tokenizer":
        model = shutil.copytree(mixtral_dir, tmp_path / "model")
        for file in model.glob("tokenizer*"):
            file.unlink()
    else:
        model = own_code_model(tmp_path, tokenizer, monkeypatch)
    number = store.submit("run", spec | {"checkpoint": str(model), "tasks": ["arc_easy"]}, "x").id
    run_worker(workspace, stop_when_idle=True)
    job = store.get(number)
    assert job.state == "failed"
    assert damage in (job.error or "")
    assert not (workspace.run_dir(number) / "packed").exists()
    assert not asked.tasks


def test_a_task_file_outside_the_roots_is_refused(
    workspace: Workspace, store: JobStore, spec: dict[str, Any]
) -> None:
    more = {"tasks": ["/proc/1/own.yaml"], "trust_remote_code": True}
    number = store.submit("run", spec | more, "x").id
    run_worker(workspace, stop_when_idle=True)
    assert "DERS_ROOTS" in (store.get(number).error or "")


def test_a_file_that_is_no_task_file_by_its_name_is_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Index:
        all_tasks = ("arc_easy",)

    monkeypatch.setattr("ders_core.evaluate.tasks.find_spec", lambda name: True)
    monkeypatch.setattr("ders_core.evaluate.tasks._manager", lambda include_defaults: Index())
    check_tasks(["arc_easy"])
    for name in ("own.txt", "own.YAML"):
        (tmp_path / name).touch()
        with pytest.raises(EvaluationError, match=name):
            check_tasks(["arc_easy", str(tmp_path / name)], trust_remote_code=True)

"""Tasks of lm-eval against log-probabilities that transformers computes in float64."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.missing import missing
from support.shell import ders, error_of
from support.worse_models import Pair

from ders_core.errors import EvaluationError
from ders_core.evaluate.tasks import evaluate_tasks
from ders_core.hf import load_model, load_tokenizer
from ders_core.pipeline.task_scores import TaskScore, parse_tasks, task_files

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that only lm-eval imports

QUESTIONS = (
    ("The river runs past the", ("mill", "frost", "book"), 0),
    ("A miller counts", ("night", "sacks", "stones"), 1),
    ("When rain comes the water is", ("brown", "wheat", "eight"), 2),
    ("She wrote numbers in a", ("frost", "day", "book"), 2),
)
CODE = """
import pathlib, random
pathlib.Path({ran!r}).touch()

def shuffled(questions):
    return questions.select(random.sample(range(len(questions)), len(questions)))
"""
"""A file beside a task: marks that it was run, and brings questions into another order."""


@pytest.fixture
def extra() -> None:
    if find_spec("lm_eval") is None:
        missing("lm-eval is not installed: its tasks were NOT asked; `make test` installs it")


needs_extra = pytest.mark.usefixtures("extra")


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """A task of multiple choice with its questions in a file."""
    questions = tmp_path / "questions.jsonl"
    rows = ({"start": s, "choices": c, "answer": n} for s, c, n in QUESTIONS)
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"data_files": {"test": str(questions)}, "cache_dir": str(tmp_path / "cache")}
    return {
        "task": "endings",
        "dataset_path": "json",
        "dataset_kwargs": files,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }


@pytest.fixture
def task_file(tmp_path: Path, task: dict[str, Any]) -> Path:
    file = tmp_path / "endings.yaml"
    file.write_text(json.dumps(task), encoding="utf-8")  # which is YAML, too
    return file


@pytest.fixture
def with_code(tmp_path: Path, task: dict[str, Any]) -> Path:
    """A task file that takes a function from the file beside it."""
    (tmp_path / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")), encoding="utf-8")
    file = tmp_path / "shuffled.yaml"
    text = json.dumps(task)[:-1] + ', "process_docs": !function own.shuffled}'
    file.write_text(text, encoding="utf-8")
    return file


def right_answers(directory: Path) -> float:
    """The share of questions whose most likely ending is the right one, in float64."""
    model, tokenizer = load_model(directory, dtype=torch.float64), load_tokenizer(directory)
    model.set_experts_implementation("eager")  # the fast one is for float32 and below
    right = []
    for start, choices, answer in QUESTIONS:
        begin = len(tokenizer(start)["input_ids"])
        found = []
        for choice in choices:
            tokens = torch.tensor(tokenizer(f"{start} {choice}")["input_ids"])
            with torch.inference_mode():
                log_probs = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
            of_tokens = log_probs.gather(-1, tokens[1:, None])[:, 0]
            found.append(float(of_tokens[begin - 1 :].sum()))
        right.append(found.index(max(found)) == answer)
    return sum(right) / len(right)


@needs_extra
def test_a_task_file_is_asked_of_both_models(pair: Pair, task_file: Path) -> None:
    words = ("eval", pair.packed, "--reference", pair.original, "--tasks", task_file)
    assert "trust" in error_of(ders(*words))  # a task file can run code
    done = ders(*words, "--trust-remote-code", "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)["tasks"]
    assert (score["task"], score["metric"], score["samples"]) == ("endings", "acc", 4)
    assert score["value"] == right_answers(pair.packed)
    assert score["original"] == right_answers(pair.original)
    few = ders(*words, "--trust-remote-code", "--limit", 2)
    assert few.returncode == 0, few.stderr
    assert "endings" in few.stdout
    assert few.stdout.rstrip().endswith("2")


@needs_extra
@pytest.mark.parametrize("name", ["own.txt", "own.YAML", "own"])
def test_a_file_that_is_no_task_file_by_its_name_is_not_run(
    name: str, pair: Pair, with_code: Path, tmp_path: Path
) -> None:
    odd = shutil.copy(with_code, tmp_path / name)
    for allowed in ([], ["--trust-remote-code"]):
        refused = error_of(ders("eval", pair.packed, "--tasks", odd, *allowed))
        assert str(odd) in refused
        assert ".yaml" in refused
    assert not (tmp_path / "ran").exists()


@needs_extra
def test_a_name_that_lm_eval_does_not_know_is_refused_before_a_text_is_read(pair: Pair) -> None:
    words = ("eval", pair.packed, "--text", "/no/text", "--tasks", "arc_easy,no_such_task")
    refused = error_of(ders(*words))
    assert "no_such_task" in refused
    assert "arc_easy" not in refused


@needs_extra
def test_both_models_are_asked_the_same_in_the_same_order(
    pair: Pair, with_code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ders_core.evaluate.task_model import WatchedModel

    asked = []
    answer = WatchedModel.loglikelihood

    def watched(model: WatchedModel, requests: Any, disable_tqdm: bool = True) -> Any:
        asked.append([request.args for request in requests])
        return answer(model, requests, disable_tqdm)

    monkeypatch.setattr(WatchedModel, "loglikelihood", watched)
    for _ in range(2):
        evaluate_tasks(pair.packed, [str(with_code)], pair.original, trust_remote_code=True)
    assert len(asked) == 4
    assert all(requests == asked[0] for requests in asked)


@needs_extra
def test_a_group_has_the_questions_of_its_tasks(
    pair: Pair, task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    group = {
        "group": "both",
        "task": ["first", "second"],
        "aggregate_metric_list": [{"metric": "acc"}],
    }
    for config in (task | {"task": "first"}, task | {"task": "second"}, group):
        file = tmp_path / f"{config.get('group', config['task'])}.yaml"
        file.write_text(json.dumps(config), encoding="utf-8")
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr("ders_core.evaluate.tasks._manager", lambda include_defaults: manager)
    scores = evaluate_tasks(pair.packed, ["both"], limit=3)
    questions = {score.task: score.samples for score in scores}
    assert questions == {"first": 3, "second": 3, "both": 6}


@needs_extra
def test_a_model_that_lm_eval_does_not_take_is_an_error_after_the_texts_result(
    pair: Pair, task_file: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*inputs: Any, **options: Any) -> None:
        raise ValueError("no such model")

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.__init__", refuse)
    asked = ("--tasks", task_file, "--trust-remote-code")
    done = ders("eval", pair.packed, "--text", text_file, "--max-tokens", 64, *asked)
    assert "no such model" in error_of(done)
    assert "perplexity" in done.stdout


def test_a_text_that_was_measured_is_printed_as_json_though_tasks_fail(
    pair: Pair, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> tuple[TaskScore, ...]:
        raise EvaluationError("the questions cannot be read")

    monkeypatch.setattr("ders_core.evaluate.tasks.check_tasks", lambda *args, **options: None)
    monkeypatch.setattr("ders_core.evaluate.tasks.evaluate_tasks", fail)
    words = ("eval", pair.packed, "--tasks", "arc_easy", "--json")
    measured = ders(*words, "--text", text_file, "--max-tokens", 64)
    assert "questions cannot be read" in error_of(measured)
    assert json.loads(measured.stdout)["tokens"] == 64
    nothing = ders(*words)
    assert "questions cannot be read" in error_of(nothing)
    assert nothing.stdout == ""


def test_without_lm_eval_the_extra_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.evaluate.tasks.find_spec", lambda name: None)
    refused = error_of(ders("eval", pair.packed, "--tasks", "arc_easy"))
    assert "ders-studio[tasks]" in refused
    assert "nothing is asked" in error_of(ders("eval", pair.packed))


def test_a_limit_without_tasks_is_wrong_usage(pair: Pair, text_file: Path) -> None:
    done = ders("eval", pair.packed, "--text", text_file, "--limit", 3)
    assert done.returncode == 2
    assert "--tasks" in done.stderr


def test_tasks_are_named_with_commas_or_one_by_one() -> None:
    assert parse_tasks(["arc_easy, piqa", "piqa", "own/t.yaml"]) == (
        "arc_easy",
        "piqa",
        "own/t.yaml",
    )
    assert task_files(("arc_easy", "own/t.yaml")) == (Path("own/t.yaml"),)
    with raises_saying(EvaluationError, "no task"):
        parse_tasks([" , "])


def test_a_score_is_told_beside_the_original() -> None:
    score = TaskScore(task="t", metric="acc", value=0.5, error=0.125, samples=9)
    assert score.text == "0.5000 ± 0.12"
    beside = score.model_copy(update={"original": 0.75})
    assert beside.text == "0.5000 ± 0.12 (original 0.7500)"

"""Tasks of lm-eval against log-probabilities that transformers computes in float64."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from support.shell import ders, error_of
from support.worse_models import Pair

from ders_core.errors import EvaluationError
from ders_core.hf import load_model, load_tokenizer
from ders_core.pipeline.task_scores import TaskScore, parse_tasks, task_files

QUESTIONS = (
    ("The river runs past the", ("mill", "frost", "book"), 0),
    ("A miller counts", ("night", "sacks", "stones"), 1),
    ("When rain comes the water is", ("brown", "wheat", "eight"), 2),
    ("She wrote numbers in a", ("frost", "day", "book"), 2),
)
needs_extra = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is an extra: pip install -e '.[tasks]'"
)


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """A task of multiple choice with its questions beside it."""
    questions = tmp_path / "questions.jsonl"
    rows = ({"start": s, "choices": c, "answer": n} for s, c, n in QUESTIONS)
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = tmp_path / "endings.yaml"
    file.write_text(
        f"""
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{questions}"}}, cache_dir: "{tmp_path / "cache"}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
metadata: {{version: 1}}
""",
        encoding="utf-8",
    )
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
@pytest.mark.filterwarnings("ignore")  # of libraries that only lm-eval imports
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
    refused = error_of(ders("eval", pair.packed, "--tasks", "no_such_task"))
    assert "no_such_task" in refused


def test_without_lm_eval_the_extra_is_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.evaluate.tasks.find_spec", lambda name: None)
    refused = error_of(ders("eval", pair.packed, "--tasks", "arc_easy"))
    assert "ders-studio[tasks]" in refused
    assert "nothing is asked" in error_of(ders("eval", pair.packed))


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
    assert score.text == "0.5 ± 0.12"
    beside = score.model_copy(update={"original": 0.75})
    assert beside.text == "0.5 ± 0.12 (original 0.75)"

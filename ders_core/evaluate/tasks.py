"""Scores on tasks of lm-evaluation-harness, which is an optional extra: questions with answers.

A task is a name that lm-eval knows, whose data set it fetches from the hub, or a task file of one's
own. Task files hold templates and may name functions and other files: they are run as code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ders_core.compute.device import resolve_device
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import DersError, EvaluationError
from ders_core.evaluate.forward import loaded
from ders_core.files.inputs import unchanged_inputs
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.hf.classes import words
from ders_core.pipeline.task_scores import FILE_ENDINGS, TaskScore, is_task_file, task_files
from ders_core.runtime.modes import Mode

SEED = 1234
"""Of the examples that a task with some shows before its questions, lm-eval's own; and of whatever
else a task draws."""

DRAWS = 1000
"""Of the bootstrap, for metrics whose standard error has no formula."""


def check_tasks(tasks: Sequence[str], *, trust_remote_code: bool = False) -> None:
    """Raise EvaluationError if tasks cannot be run, in seconds and without a model: lm-eval is not
    installed, it does not know a name, a task file is missing, or it may not be run as code.

    lm-eval itself takes a name that it does not know for a path, and runs what lies there.
    """
    if tasks and find_spec("lm_eval") is None:
        raise EvaluationError(
            "tasks need lm-eval, which is not installed; run pip install 'ders-studio[tasks]'"
        )
    for file in task_files(tasks):
        if not file.is_file():
            raise EvaluationError(f"task file {file} does not exist; give a task's name or a file")
        if not trust_remote_code:
            raise EvaluationError(
                f"task file {file} can run code; allow it (--trust-remote-code) if you have read it"
            )
    names = [task for task in tasks if not is_task_file(task)]
    unknown = sorted(set(names).difference(_manager(True).all_tasks)) if names else []
    if unknown:
        raise EvaluationError(
            f"lm-eval knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists the names that "
            f"it knows, and the name of a task file ends in {' or '.join(FILE_ENDINGS)}"
        )


@unchanged_inputs()
def evaluate_tasks(
    model: str | Path,
    tasks: Sequence[str],
    reference: str | Path | None = None,
    *,
    limit: int | None = None,
    device: str = "cpu",
    batch: int = 8,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    mode: Mode = "synthesized",
    progress: Progress = quiet,
) -> tuple[TaskScore, ...]:
    """Ask `model` the questions of tasks, and `reference` the same; one is in memory at a time.

    tasks: as of `ders_core.pipeline.task_scores.parse_tasks`; each is loaded once. limit: questions
    of each task, the first ones; None for all. batch: sequences at once. The rest: as of
    `evaluate`, of the same package. progress tells how often a model was run. The random states of
    Python, numpy and torch are set, so that tasks draw the same for both models.
    Raises EvaluationError as `check_tasks` does, and if lm-eval cannot load or run a task;
    CheckpointError if a model cannot be loaded.
    """
    check_tasks(tasks, trust_remote_code=trust_remote_code)
    where = resolve_device(device)
    paths = [model] if reference is None else [model, reference]
    models = [describe(path, trust_remote_code=trust_remote_code) for path in paths]
    tokenizers = [load_tokenizer(each.path, trust_remote_code=trust_remote_code) for each in models]
    if dtype is None:
        dtype = shared_dtype(models, where)
    progress(0, 0, "loading tasks")
    with _failures_of(tasks):
        questions = _load(tasks)
    tables = []
    for role, facts, tokenizer in zip(
        ("the model", "the original"), models, tokenizers, strict=False
    ):
        passes = count(1)

        def told(role: str = role, passes: Iterator[int] = passes) -> None:
            progress(0, 0, f"asking {role} questions, pass {next(passes)}")

        progress(0, 0, f"loading {role}")
        with (
            loaded(facts.path, where.type, dtype, trust_remote_code, mode) as network,
            _failures_of(tasks),
        ):
            from ders_core.evaluate.task_model import WatchedModel

            tables.append(_scores(WatchedModel(network, tokenizer, batch, told), questions, limit))
    return tuple(_with_original(score, tables[1:]) for score in tables[0])


def _with_original(score: TaskScore, tables: Sequence[Sequence[TaskScore]]) -> TaskScore:
    """The score, and what the original reached, if it was run."""
    place = (score.task, score.metric)
    same = [each for table in tables for each in table if (each.task, each.metric) == place]
    if not same:
        return score
    return score.model_copy(update={"original": same[0].value, "original_error": same[0].error})


@contextmanager
def _failures_of(tasks: Sequence[str]) -> Iterator[None]:
    """Raise what goes wrong in lm-eval as an EvaluationError: tasks are programs of others, and may
    fail in any way."""
    try:
        yield
    except (DersError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise EvaluationError(f"lm-eval cannot run {', '.join(tasks)}: {words(error)}") from error


@cache
def _manager(include_defaults: bool) -> Any:
    """lm-eval's loader of tasks. include_defaults: with the index of those that come with it, which
    takes seconds."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
    return TaskManager(include_defaults=include_defaults)


def _load(tasks: Sequence[str]) -> Any:
    """The questions of tasks that `check_tasks` lets pass."""
    set_seed(SEED)
    questions = _manager(not all(map(is_task_file, tasks))).load(list(tasks))
    for task in questions["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return questions


def _scores(model: Any, questions: Any, limit: int | None) -> list[TaskScore]:
    """Of one model, as lm-eval asks it."""
    from lm_eval import evaluator

    for task in questions["tasks"].values():
        task.set_fewshot_seed(seed=SEED)
    set_seed(SEED)
    results = evaluator.evaluate(
        model, questions, limit=limit, bootstrap_iters=DRAWS, log_samples=False
    )
    return list(_read(results))


def _read(results: dict[str, Any]) -> Iterator[TaskScore]:
    """The numbers among lm-eval's results, whose keys are `metric,filter`. A group has the
    questions of those of its tasks that have the metric."""
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not comma or metric.endswith("_stderr") or not is_number:
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            yield TaskScore(
                task=task,
                metric=metric if chosen == "none" else f"{metric}, {chosen}",
                value=value,
                error=error if isinstance(error, float) else None,
                samples=values.get("sample_count", {}).get(key, values["sample_len"]),
            )

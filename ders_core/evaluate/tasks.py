"""Scores on tasks of lm-evaluation-harness, which is an optional extra: questions with answers.

A task is a name that lm-eval knows, whose data set it fetches from the hub, or a task file of one's
own. Task files hold templates and may name functions: they are run as code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ders_core.compute.device import resolve_device
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import DersError, EvaluationError
from ders_core.evaluate.forward import loaded
from ders_core.files.inputs import unchanged_inputs
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.hf.classes import words
from ders_core.pipeline.task_scores import TaskScore, task_files
from ders_core.runtime.modes import Mode

SEED = 1234
"""Of the examples that a task with some shows before its questions; lm-eval's own."""

DRAWS = 1000
"""Of the bootstrap, for metrics whose standard error has no formula."""


def check_tasks(tasks: Sequence[str], *, trust_remote_code: bool = False) -> None:
    """Raise EvaluationError if tasks cannot be run, in no time and without a model: lm-eval is not
    installed, a task file is missing, or it may not be run as code."""
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

    tasks: as of `ders_core.pipeline.task_scores.parse_tasks`. limit: questions of each task, the
    first ones; None for all. batch: sequences at once. The rest: as of `evaluate`, of the same
    package. progress tells how often a model was run. Raises EvaluationError as `check_tasks` does,
    and if lm-eval cannot load or run a task; CheckpointError if a model cannot be loaded.
    """
    check_tasks(tasks, trust_remote_code=trust_remote_code)
    where = resolve_device(device)
    paths = [model] if reference is None else [model, reference]
    models = [describe(path, trust_remote_code=trust_remote_code) for path in paths]
    if dtype is None:
        dtype = shared_dtype(models, where)
    tables = []
    for role, facts in zip(("the model", "the original"), models, strict=False):
        passes = count(1)

        def told(role: str = role, passes: Iterator[int] = passes) -> None:
            progress(0, 0, f"asking {role} questions, pass {next(passes)}")

        progress(0, 0, f"loading {role}")
        tokenizer = load_tokenizer(facts.path, trust_remote_code=trust_remote_code)
        with loaded(facts.path, where.type, dtype, trust_remote_code, mode) as network:
            from ders_core.evaluate.task_model import WatchedModel

            asked = WatchedModel(network, tokenizer, batch, told)
            tables.append(_scores(asked, tasks, limit))
    return tuple(_with_original(score, tables[1:]) for score in tables[0])


def _with_original(score: TaskScore, tables: Sequence[Sequence[TaskScore]]) -> TaskScore:
    """The score, and what the original reached, if it was run."""
    place = (score.task, score.metric)
    same = [each for table in tables for each in table if (each.task, each.metric) == place]
    if not same:
        return score
    return score.model_copy(update={"original": same[0].value, "original_error": same[0].error})


def _scores(model: Any, tasks: Sequence[str], limit: int | None) -> list[TaskScore]:
    """Of one model, as lm-eval asks it."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
    are_files = len(task_files(tasks)) == len(tasks)
    try:
        manager = TaskManager(include_defaults=not are_files)
        found = manager.load(list(tasks))
        for task in found["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        results = evaluator.evaluate(
            model, found, limit=limit, bootstrap_iters=DRAWS, log_samples=False
        )
    except (DersError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tasks are programs of others, and may fail in any way
        raise EvaluationError(
            f"lm-eval cannot run {', '.join(tasks)}: {words(error)}; `lm-eval ls tasks` lists the "
            "names that it knows"
        ) from error
    return list(_read(results))


def _read(results: dict[str, Any]) -> Iterator[TaskScore]:
    """The numbers among lm-eval's results, whose keys are `metric,filter`."""
    for task, values in results["results"].items():
        samples = results["n-samples"].get(task, {}).get("effective", 0)
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
                samples=samples,
            )

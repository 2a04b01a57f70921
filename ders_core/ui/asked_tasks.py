"""Tasks of lm-eval on the Runs page: which are asked, and what was reached on them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import EvaluationError
from ders_core.later import pd
from ders_core.pipeline.task_scores import TaskScore, parse_tasks, task_files
from ders_core.ui import kept
from ders_core.units import visible


def tasks_fields(source: Checkpoint) -> tuple[str, int]:
    """The tasks as a person wrote them, and the most questions of each, 0 for all. Where lm-eval is
    not installed, no tasks and no fields."""
    if find_spec("lm_eval") is None:
        return "", 0
    written = kept.field(
        st.text_input,
        "Tasks",
        key="run_tasks",
        start="",
        of=source.path,
        placeholder="arc_easy, piqa",
        help="Tasks of lm-eval, with commas between them, that both models are asked too. Data "
        "sets come from the hub. A task file (.yaml) runs what it includes and the Python files "
        "that it names, as a model's own code runs.",
    )
    questions = kept.field(
        st.number_input,
        "Questions",
        key="run_questions",
        start=0,
        of=source.path,
        min_value=0,
        help="Of each task, at most; 0: all.",
        width=160,
    )
    return written, questions


def asked_tasks(written: str, questions: int, *, trusted: bool) -> dict[str, Any]:
    """The fields of a run's spec for what a person wrote; none for no tasks. questions: of each, 0
    for all. Raises EvaluationError for a task file that is not trusted."""
    if not written.strip():
        return {}
    tasks = parse_tasks([written])
    if task_files(tasks) and not trusted:
        raise EvaluationError(
            "a task file can run code; turn on trust_remote_code if you have read it, or name a "
            "task that lm-eval knows"
        )
    return {"tasks": tasks, "limit": questions or None}


def tasks_table(scores: Sequence[TaskScore]) -> None:
    """A row for each metric of each task, beside the original; nothing without tasks."""
    if not scores:
        return
    rows = [
        {
            "task": visible(score.label),
            "reached": score.text,
            "questions": score.samples,
        }
        for score in scores
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)

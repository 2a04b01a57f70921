"""What models reach on tasks, and how tasks are named by a person."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ders_core.errors import EvaluationError
from ders_core.units import number_text

FILE_ENDINGS = (".yaml", ".yml")


class TaskScore(BaseModel):
    """One metric of one task. value: of the model, of `samples` questions. error: its standard
    error; None where the task tells none. original, original_error: the same of the original; None
    if it was not run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    metric: str
    value: float
    error: float | None = None
    original: float | None = None
    original_error: float | None = None
    samples: int

    @property
    def label(self) -> str:
        """Task and metric."""
        return f"{self.task}, {self.metric}"

    @property
    def text(self) -> str:
        """The value, and beside it the original's, each with its standard error."""
        text = _with_error(self.value, self.error)
        if self.original is None:
            return text
        return f"{text} (original {_with_error(self.original, self.original_error)})"


def _with_error(value: float, error: float | None) -> str:
    text = number_text(value, 4)
    return text if error is None else f"{text} ± {number_text(error, 2)}"


def parse_tasks(words: Iterable[str]) -> tuple[str, ...]:
    """Tasks as a person names them: several in a word have commas between them, a task file is a
    path that ends in .yaml or .yml. Raises EvaluationError if there is none."""
    names = [name.strip() for word in words for name in word.split(",")]
    tasks = tuple(dict.fromkeys(filter(None, names)))
    if not tasks:
        raise EvaluationError("no task is named; give a task of lm-eval, such as arc_easy")
    return tasks


def is_task_file(task: str) -> bool:
    """Whether a task is a file by its name; lm-eval runs such a file as code."""
    return task.endswith(FILE_ENDINGS)


def task_files(tasks: Iterable[str]) -> tuple[Path, ...]:
    """Those tasks that are files."""
    return tuple(Path(task) for task in tasks if is_task_file(task))

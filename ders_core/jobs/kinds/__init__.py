"""One file per kind of job: a thin call of the library. A kind's module is imported when a worker
takes up such a job, so that pages, which only file jobs, need neither torch nor dask."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ders_core.errors import JobError
from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import SPECS

Task = Callable[[TaskContext], dict[str, Any]]
"""Does a job and returns its result, which must be JSON."""


def task(kind: str) -> Task:
    """The function `run` of the module of that name. Raises JobError for an unknown kind."""
    if kind not in SPECS:
        raise JobError(f"this worker knows no job of kind {kind!r}; restart it after the update")
    found: Task = import_module(f"ders_core.jobs.kinds.{kind}").run
    return found

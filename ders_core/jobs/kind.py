"""A kind of job: its parameters, its steps, the work, and the result that pages read.

Each kind is one file of `ders_core/jobs/kinds/`. Pages file jobs and read results without torch or
dask, so a kind's file imports what the work needs inside `run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.errors import JobError, sentence_of
from ders_core.registry import Registry

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext
    from ders_core.jobs.job import Job

Device = Literal["auto", "cpu", "cuda"]
TextSpec = str | tuple[str, ...] | dict[str, str | tuple[str, ...]]
"""A path, several, or each of a name."""


class Spec(BaseModel):
    """The parameters of one kind of job, as JSON in the store; paths are text."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(BaseModel):
    """What a finished job of one kind came to, as JSON in the store.

    A field that is added later needs a default, because stores keep results of earlier versions.
    Keys that a later version wrote are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """The result of a job; None until it is done. Raises JobError if it cannot be read."""
        if job.result is None:
            return None
        try:
            return cls.model_validate(job.result)
        except ValidationError as error:
            raise JobError(
                f"{sentence_of(error, f'the result of job {job.id}')}; delete the job and run it "
                "again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The values that the store keeps."""
        return self.model_dump(mode="json")


S = TypeVar("S", bound=Spec)
R = TypeVar("R", bound=Result)


class Kind(ABC, Generic[S, R]):
    """One kind of job; it has no state.

    name: the word in the store. steps: what a page shows, in order; `run` does or skips each.
    spec, result: the classes of its parameters and of its result.
    """

    name: ClassVar[str]
    steps: ClassVar[tuple[str, ...]]
    spec: type[S]
    result: type[R]

    @abstractmethod
    def title(self, spec: S) -> str:
        """What a page calls a job with these parameters."""

    @abstractmethod
    def run(self, context: TaskContext, spec: S) -> R:
        """Do the job. Raises DersError for what a user can mend, and Cancelled (see `context`)."""

    def parse(self, parameters: Mapping[str, Any]) -> S:
        """Check a job's parameters and fill in defaults. Raises JobError."""
        try:
            return self.spec.model_validate(parameters)
        except ValidationError as error:
            known = self.spec.model_fields
            raise JobError(sentence_of(error, f"job {self.name!r}", "parameter", known)) from error


KINDS: Registry[Kind[Any, Any]] = Registry("kind of job", "ders_core.jobs.kinds", JobError)
"""The kinds of job by the words in the store."""

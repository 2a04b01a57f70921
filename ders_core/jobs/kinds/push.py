"""Push an exported directory to a model hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.errors import one_line
from ders_core.jobs.kind import KINDS, Kind, Result, Spec

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


class PushSpec(Spec):
    """directory: what an export wrote. name: OWNER/NAME. The token is in the environment of the
    worker, not here."""

    directory: str
    name: str = Field(min_length=1, max_length=200)
    private: bool = True


class PushResult(Result):
    """As `ders_core.pipeline.push.PushResult`."""

    address: str
    private: bool
    bytes: int
    files: int
    was_there: bool = False


@KINDS.register
class Push(Kind[PushSpec, PushResult]):
    """A repository of a hub from a directory; resumed, it sends what is missing."""

    name = "push"
    steps = ("push",)
    spec = PushSpec
    result = PushResult

    def title(self, spec: PushSpec) -> str:
        return f"Push {one_line(spec.name)}"

    def run(self, context: TaskContext, spec: PushSpec) -> PushResult:
        from ders_core.pipeline.push import push

        directory = context.allowed(spec.directory)

        def send() -> dict[str, Any]:
            result = push(directory, spec.name, private=spec.private, progress=context.progress)
            return result.to_dict()

        return PushResult.model_validate(context.step("push", send))

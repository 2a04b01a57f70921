"""Build the demo in the workspace, unless it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Kind, Result, Spec

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


class DemoSpec(Spec):
    """Build the demo in the workspace."""

    seed: int = Field(default=0, ge=0)


class DemoResult(Result):
    """Paths of the two models and the two texts; perplexities on the held-out text."""

    moe: str
    dense: str
    calibration: str
    heldout: str
    perplexities: dict[str, float]


@KINDS.register
class Demo(Kind[DemoSpec, DemoResult]):
    """Train a small dense model and upcycle it."""

    name = "demo"
    steps = ("build",)
    spec = DemoSpec
    result = DemoResult

    def title(self, spec: DemoSpec) -> str:
        return "Build the demo"

    def run(self, context: TaskContext, spec: DemoSpec) -> DemoResult:
        from ders_core.demo import build_demo
        from ders_core.files.store import read_json

        out = context.workspace.demo

        def build() -> dict[str, Any]:
            if (out / "demo.json").is_file():  # perhaps by an attempt that died right after
                context.log("the demo is in the workspace already")
                perplexities = read_json(out / "demo.json")["perplexities"]
            else:
                built = build_demo(out, seed=spec.seed, progress=context.progress)
                perplexities = built.perplexities
            return {
                "moe": str(out / "moe"),
                "dense": str(out / "dense"),
                "calibration": str(out / "calibration.txt"),
                "heldout": str(out / "heldout.txt"),
                "perplexities": perplexities,
            }

        return DemoResult.model_validate(context.step("build", build))

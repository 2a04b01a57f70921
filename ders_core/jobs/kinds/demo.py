"""Build the demo in the workspace, unless it is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Kind, Result, Spec

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


DEMO_STEPS_VARIABLE = "DERS_DEMO_STEPS"


def _demo_steps() -> Any:
    """What the environment asks for, as text that pydantic checks."""
    return os.environ.get(DEMO_STEPS_VARIABLE) or None


class DemoSpec(Spec):
    """Build the demo in the workspace. steps: of the dense parent's training, and half as many for
    the experts; by default what $DERS_DEMO_STEPS says, None for the full number."""

    seed: int = Field(default=0, ge=0)
    steps: int | None = Field(default_factory=_demo_steps, ge=2, validate_default=True)


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
        from ders_core.demo import DemoScale, build_demo
        from ders_core.files.json_object import read_json

        out = context.workspace.demo

        def build() -> dict[str, Any]:
            if (out / "demo.json").is_file():  # perhaps by an attempt that died right after
                context.log("the demo is in the workspace already")
                perplexities = read_json(out / "demo.json")["perplexities"]
            else:
                scale = DemoScale.of_steps(spec.steps)
                built = build_demo(out, seed=spec.seed, scale=scale, progress=context.progress)
                perplexities = built.perplexities
            return {
                "moe": str(out / "moe"),
                "dense": str(out / "dense"),
                "calibration": str(out / "calibration.txt"),
                "heldout": str(out / "heldout.txt"),
                "perplexities": perplexities,
            }

        return DemoResult.model_validate(context.step("build", build))

"""Build the demo in the workspace."""

from __future__ import annotations

from typing import Any

from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import DemoSpec


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.demo import build_demo

    spec = context.spec(DemoSpec)

    def build() -> dict[str, Any]:
        result = build_demo(context.workspace.demo, seed=spec.seed, progress=context.progress)
        return {
            "moe": str(result.moe),
            "dense": str(result.dense),
            "calibration": str(result.calibration),
            "heldout": str(result.heldout),
            "perplexities": dict(result.perplexities),
        }

    return context.step("build", build)

"""Build the demo in the workspace, unless it is there."""

from __future__ import annotations

from typing import Any

from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import DemoSpec


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.demo import DemoScale, build_demo
    from ders_core.files.store import read_json

    spec, out = context.spec(DemoSpec), context.workspace.demo

    def build() -> dict[str, Any]:
        if (out / "demo.json").is_file():  # built before, perhaps by an attempt that died just then
            context.log("the demo stands in the workspace already")
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

    return context.step("build", build)

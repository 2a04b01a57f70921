"""Analyse a checkpoint; the tables go into the workspace, under the checkpoint's identity."""

from __future__ import annotations

from typing import Any

from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import AnalyzeSpec


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.analysis import analyze
    from ders_core.checkpoint import Checkpoint

    spec = context.spec(AnalyzeSpec)
    checkpoint = Checkpoint(context.checkpoint(spec.checkpoint))
    directory = context.workspace.analysis_dir(checkpoint.identity)
    device = context.device(spec.device)

    def work() -> dict[str, Any]:
        analysis = analyze(
            checkpoint,
            layers=spec.layers,
            spectra=spec.spectra,
            device=device,
            progress=context.progress,
        )
        analysis.save(directory)
        return {"identity": checkpoint.identity, "directory": str(directory)}

    return context.step("analyze", work)

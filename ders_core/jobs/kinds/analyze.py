"""Analyse a checkpoint. The tables go into the workspace under the checkpoint's identity; pages
show the finished layers while others are read."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ders_core.errors import CheckpointError, OutputError
from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.jobs.workspace import place_label

if TYPE_CHECKING:
    from ders_core.analysis import Analysis
    from ders_core.jobs.context import TaskContext

SAVE_EVERY = 2.0
"""Seconds between two saved states of an unfinished analysis, at least."""

SAVE_SHARE = 10
"""As many times as long as saving took, the analysis goes on before it is saved again."""


class AnalyzeSpec(Spec):
    """Analyse a checkpoint. layers: None for all; workers: threads, None for one per core."""

    checkpoint: str
    spectra: Literal["none", "head", "curve", "exact"] = "curve"
    layers: list[int] | None = None
    device: Device = "auto"
    workers: int | None = Field(default=None, ge=1)


class AnalyzeResult(Result):
    """identity: of the checkpoint. directory: of its tables."""

    identity: str
    directory: str


@KINDS.register
class Analyze(Kind[AnalyzeSpec, AnalyzeResult]):
    """Compare the experts of every layer."""

    name = "analyze"
    steps = ("analyze",)
    spec = AnalyzeSpec
    result = AnalyzeResult

    def title(self, spec: AnalyzeSpec) -> str:
        return f"Analyse {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: AnalyzeSpec) -> AnalyzeResult:
        from ders_core.analysis import analyze
        from ders_core.packed.open import open_checkpoint

        checkpoint = open_checkpoint(context.checkpoint(spec.checkpoint))
        directory = context.workspace.analysis_dir(checkpoint.identity)
        growing = context.workspace.growing_dir(checkpoint.identity)
        device = context.device(spec.device)
        saved, took = float("-inf"), 0.0

        def save(unfinished: Analysis) -> None:
            nonlocal saved, took
            begun = time.monotonic()
            if begun - saved >= max(SAVE_EVERY, SAVE_SHARE * took):
                with suppress(OutputError):  # what is saved at the end decides
                    unfinished.save(growing)
                saved = time.monotonic()
                took = saved - begun

        def read() -> dict[str, Any]:
            with context.engine(spec.workers, device) as engine:
                analysis = analyze(
                    checkpoint,
                    layers=spec.layers,
                    spectra=spec.spectra,
                    device=device,
                    runner=engine.run,
                    known=_interrupted(growing),
                    grown=save,
                    progress=context.progress,
                )
            analysis.save(directory)
            shutil.rmtree(growing, ignore_errors=True)
            return {"identity": checkpoint.identity, "directory": str(directory)}

        return AnalyzeResult.model_validate(context.step("analyze", read))


def _interrupted(growing: Path) -> Analysis | None:
    """The layers that an interrupted attempt finished."""
    from ders_core.analysis import Analysis

    try:
        return Analysis.load(growing) if growing.is_dir() else None
    except CheckpointError:
        return None

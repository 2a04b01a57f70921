"""Analyse a checkpoint; the tables go into the workspace, under the checkpoint's identity, and can
be looked at layer by layer while they grow."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ders_core.errors import CheckpointError
from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import AnalyzeSpec
from ders_core.packed.open import open_checkpoint

if TYPE_CHECKING:
    from ders_core.analysis import Analysis

SAVE_EVERY = 2.0
"""Seconds between two looks that a page gets."""


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.analysis import analyze

    spec = context.spec(AnalyzeSpec)
    checkpoint = open_checkpoint(context.checkpoint(spec.checkpoint))
    directory = context.workspace.analysis_dir(checkpoint.identity)
    growing = context.workspace.growing_dir(checkpoint.identity)
    device = context.device(spec.device)
    saved = float("-inf")

    def save(found: Analysis) -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVE_EVERY:
            found.save(growing)
            saved = time.monotonic()

    def work() -> dict[str, Any]:
        with context.engine(spec.workers, device) as engine:
            analysis = analyze(
                checkpoint,
                layers=spec.layers,
                spectra=spec.spectra,
                device=device,
                run=engine.run,
                known=_left(growing),
                grown=save,
                progress=context.progress,
            )
        analysis.save(directory)
        shutil.rmtree(growing, ignore_errors=True)
        return {"identity": checkpoint.identity, "directory": str(directory)}

    return context.step("analyze", work)


def _left(growing: Path) -> Analysis | None:
    """What an interrupted attempt had finished."""
    from ders_core.analysis import Analysis

    try:
        return Analysis.load(growing) if growing.is_dir() else None
    except CheckpointError:
        return None

"""A run: compress a checkpoint, verify what was written, and evaluate it if there is a text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ders_core.errors import OutputError
from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import RunSpec

PACKED = "packed"
RECIPE = "recipe.yaml"
REPORT = "report.json"


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.files.address import is_remote
    from ders_core.recipe import Recipe

    spec = context.spec(RunSpec)
    checkpoint = context.checkpoint(spec.checkpoint)
    recipe = Recipe.from_yaml(spec.recipe)
    for path in recipe.files:
        context.allowed(str(path))
    text = context.allowed(spec.text) if spec.text is not None else None
    place = context.directory()
    (place / RECIPE).write_text(spec.recipe, encoding="utf-8")
    packed, device = place / PACKED, context.device(spec.device)

    report = context.step(
        "compress",
        lambda: _compress(context, checkpoint, packed, recipe, device, spec.workers),
        place / REPORT,
    )
    verification = context.step(
        "verify", lambda: _verify(context, packed, checkpoint), place / "verification.json"
    )
    quality = None
    if text is None:
        context.skip("evaluate", "no text was given, so the quality was not measured")
    elif is_remote(checkpoint):
        context.skip("evaluate", "the original lies elsewhere; download it to measure the quality")
    else:
        quality = context.step(
            "evaluate",
            lambda: _evaluate(context, packed, checkpoint, text, spec.max_tokens, device),
            place / "quality.json",
        )
    return {
        "packed": str(packed),
        "report": report,
        "verification": verification,
        "quality": quality,
        "bytes_before": report["bytes_before"],
        "bytes_after": report["bytes_after"],
        "ratio": report["ratio"],
        "device": device,
    }


def _compress(
    context: TaskContext,
    checkpoint: Path,
    packed: Path,
    recipe: Any,
    device: str,
    workers: int | None,
) -> dict[str, Any]:
    from ders_core.pipeline.compress import compress

    if packed.exists():  # finished, but its report was lost with the worker
        shutil.rmtree(packed)
    with context.engine(workers, device) as engine:
        report = compress(
            checkpoint,
            packed,
            recipe,
            device=device,
            resume=True,
            runner=engine.run,
            progress=context.progress,
        )
    return report.to_dict()


def _verify(context: TaskContext, packed: Path, checkpoint: Path) -> dict[str, Any]:
    from ders_core.pipeline.verify import verify

    found = verify(packed, checkpoint, progress=context.progress)
    if not found.ok:
        (context.directory() / REPORT).unlink()
        raise OutputError(f"{found.problems[0]}; resume this run to write it again")
    return found.to_dict()


def _evaluate(
    context: TaskContext, packed: Path, checkpoint: Path, text: Path, max_tokens: int, device: str
) -> dict[str, Any]:
    from ders_core.evaluate import evaluate

    return evaluate(
        packed,
        checkpoint,
        text=text,
        device=device,
        max_tokens=max_tokens,
        progress=context.progress,
    ).to_dict()

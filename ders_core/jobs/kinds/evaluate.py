"""Measure a model on a text, against a reference if one is given."""

from __future__ import annotations

from typing import Any

from ders_core.jobs.context import TaskContext
from ders_core.jobs.specs import EvaluateSpec


def run(context: TaskContext) -> dict[str, Any]:
    from ders_core.evaluate import evaluate

    spec = context.spec(EvaluateSpec)
    model, text = context.allowed(spec.model), context.allowed(spec.text)
    reference = context.allowed(spec.reference) if spec.reference is not None else None
    device = context.device(spec.device)

    def work() -> dict[str, Any]:
        return evaluate(
            model,
            reference,
            text=text,
            device=device,
            max_tokens=spec.max_tokens,
            progress=context.progress,
        ).to_dict()

    return context.step("evaluate", work, context.directory() / "quality.json")

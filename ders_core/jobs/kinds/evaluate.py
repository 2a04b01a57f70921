"""Measure a model on a text, against a reference if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec, TextSpec
from ders_core.jobs.workspace import place_label
from ders_core.pipeline.quality import Quality

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext


class EvaluateSpec(Spec):
    """Measure a model, against a reference if there is one. text: one path, or several that are
    read as one text; or texts by names, which are measured apart too. trust_remote_code: run
    code that comes with them, with the worker's rights."""

    model: str
    reference: str | None = None
    text: TextSpec
    device: Device = "auto"
    max_tokens: int = Field(default=8192, ge=2)
    trust_remote_code: bool = False


class EvaluateResult(Result, Quality):
    """The figures of the evaluation."""


@KINDS.register
class Evaluate(Kind[EvaluateSpec, EvaluateResult]):
    """Measure a model on a text."""

    name = "evaluate"
    steps = ("evaluate",)
    spec = EvaluateSpec
    result = EvaluateResult

    def title(self, spec: EvaluateSpec) -> str:
        return f"Evaluate {place_label(spec.model)}"

    def run(self, context: TaskContext, spec: EvaluateSpec) -> EvaluateResult:
        from ders_core.evaluate import evaluate

        model, text = context.allowed(spec.model), context.allowed_named_texts(spec.text)
        reference = context.allowed(spec.reference) if spec.reference is not None else None
        device = context.device(spec.device)

        def measure() -> dict[str, Any]:
            return evaluate(
                model,
                reference,
                text=text,
                device=device,
                max_tokens=spec.max_tokens,
                trust_remote_code=spec.trust_remote_code,
                progress=context.progress,
            ).to_dict()

        quality = context.step("evaluate", measure, context.directory() / "quality.json")
        return EvaluateResult.model_validate(quality)

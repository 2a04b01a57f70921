"""Measure a calibration. Its file lies in the job's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.jobs.workspace import place_label

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

FILE = "calibration.safetensors"


class CalibrateSpec(Spec):
    """Measure the experts' inputs on a text. text: one path, or several. gradients: measure also
    how much an error in each weight costs. others: and of the matrices that hold no routed expert,
    with gradients. each_expert: and moments of each expert's own inputs, with gradients.
    trust_remote_code: run code that comes with the model, with the worker's rights."""

    checkpoint: str
    text: str | tuple[str, ...]
    gradients: bool = False
    others: bool = False
    each_expert: bool = False
    device: Device = "auto"
    max_tokens: int = Field(default=8192, ge=1)
    window: int = Field(default=512, ge=2)
    trust_remote_code: bool = False


class CalibrateResult(Result):
    """path: of the file. tokens: how many were read. dtype: in which the model was computed.
    others: how many matrices that hold no routed expert were measured. each_expert: each expert's
    own inputs were."""

    path: str
    tokens: int
    dtype: str
    gradients: bool
    others: int = 0
    each_expert: bool = False


@KINDS.register
class Calibrate(Kind[CalibrateSpec, CalibrateResult]):
    """Measure the experts' inputs, and what errors in their weights cost."""

    name = "calibrate"
    steps = ("calibrate",)
    spec = CalibrateSpec
    result = CalibrateResult

    def title(self, spec: CalibrateSpec) -> str:
        return f"Calibrate {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: CalibrateSpec) -> CalibrateResult:
        from ders_core.calibrate import calibrate
        from ders_core.pipeline.calibration import Calibration

        checkpoint, text = context.allowed(spec.checkpoint), context.allowed_texts(spec.text)
        device, out = context.device(spec.device), context.directory() / FILE

        def measure() -> dict[str, Any]:
            if out.exists():  # of an attempt that died right after
                calibration = Calibration.open(out)
            else:
                calibration = calibrate(
                    checkpoint,
                    out,
                    text=text,
                    device=device,
                    max_tokens=spec.max_tokens,
                    window=spec.window,
                    gradients=spec.gradients,
                    others=spec.others,
                    each_expert=spec.each_expert,
                    trust_remote_code=spec.trust_remote_code,
                    progress=context.progress,
                )
            return {
                "path": str(out),
                "tokens": calibration.tokens,
                "dtype": calibration.dtype,
                "gradients": calibration.has_gradients,
                "others": len(calibration.others.names),
                "each_expert": calibration.has_each,
            }

        return CalibrateResult.model_validate(context.step("calibrate", measure))

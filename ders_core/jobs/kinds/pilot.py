"""Try three safe sizes and an aggressive one, and keep what a report shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec, TextSpec
from ders_core.jobs.workspace import place_label
from ders_core.tune.pilot.outcome import Pilot

if TYPE_CHECKING:
    from ders_core.files.named_texts import NamedTexts
    from ders_core.jobs.context import TaskContext

DONE = "done.json"


class PilotSpec(Spec):
    """text: as of a run; cut in two, unless there is `heldout`, on which alone is measured then.
    prompts: what all models go on with; () for beginnings of the text. friendly: forms alone that
    hardware decodes easily. tokens: that are calibrated on; max_tokens: that are measured on.
    trust_remote_code: run code that comes with the model, with the worker's rights."""

    checkpoint: str
    text: TextSpec
    heldout: TextSpec = ()
    prompts: tuple[str, ...] = ()
    name: str = ""
    friendly: bool = False
    device: Device = "auto"
    tokens: int = Field(default=12288, ge=1)
    max_tokens: int = Field(default=8192, ge=2)
    trust_remote_code: bool = False


class PilotResult(Result):
    """pilot: what `ders_core.figures.pilot` makes a report of."""

    pilot: Pilot


@KINDS.register
class PilotKind(Kind[PilotSpec, PilotResult]):
    """Verdict, calibration, sizes that are measured, answers side by side."""

    name = "pilot"
    steps = ("pilot",)
    spec = PilotSpec
    result = PilotResult

    def title(self, spec: PilotSpec) -> str:
        return spec.name or f"Pilot of {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: PilotSpec) -> PilotResult:
        checkpoint = context.allowed(spec.checkpoint)
        text = context.allowed_named_texts(spec.text)
        heldout = context.allowed_named_texts(spec.heldout) if spec.heldout else None
        device, directory = context.device(spec.device), context.directory()

        def tried() -> dict[str, Any]:
            found = _pilot(context, spec, str(checkpoint), text, heldout, device)
            return {"pilot": found.model_dump(mode="json")}

        return PilotResult.model_validate(context.step("pilot", tried, directory / DONE))


def _pilot(
    context: TaskContext,
    spec: PilotSpec,
    checkpoint: str,
    text: NamedTexts,
    heldout: NamedTexts | None,
    device: str,
) -> Pilot:
    from ders_core.packed.open import open_checkpoint
    from ders_core.tune.measuring import Setting
    from ders_core.tune.pilot.run import Wishes, pilot

    setting = Setting(
        text,
        device=device,
        max_tokens=spec.max_tokens,
        trust_remote_code=spec.trust_remote_code,
    )
    return pilot(
        open_checkpoint(checkpoint),
        context.directory() / "work",
        Wishes(setting, heldout, spec.prompts, spec.tokens, spec.friendly),
        scores=context.workspace.scores,
        progress=context.progress,
    )

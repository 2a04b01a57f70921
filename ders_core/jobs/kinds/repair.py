"""Repair a packed checkpoint: train what is small in it, then verify what was written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.errors import OutputError
from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec
from ders_core.jobs.results import PackedResult
from ders_core.jobs.workspace import place_label
from ders_core.pipeline.quality import Quality
from ders_core.repair.settings import RepairSettings

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

USUAL = RepairSettings()
PACKED = "packed"
RESULT = "result.json"


class RepairSpec(Spec):
    """Repair a packed checkpoint. original: what was packed. text, heldout: one path, or several;
    heldout None: a part of each text is held out. train: words of `ders_core.repair.TRAINABLE`;
    none: the usual ones. trust_remote_code: run code that comes with the model, with the worker's
    rights."""

    checkpoint: str
    original: str
    text: str | tuple[str, ...]
    heldout: str | tuple[str, ...] | None = None
    name: str = ""
    train: tuple[str, ...] = ()
    steps: int = Field(default=USUAL.steps, ge=1)
    batch: int = Field(default=USUAL.batch, ge=1)
    window: int = Field(default=USUAL.window, ge=2)
    rate: float | None = Field(default=None, gt=0, le=1)
    device: Device = "auto"
    trust_remote_code: bool = False


class RepairInterval(Result):
    """A mean over windows, and where it lies with a probability of 95 %."""

    mean: float
    low: float
    high: float


class RepairFigures(Result):
    """See `ders_core.repair.RepairResult`."""

    steps: int
    tokens: int
    trained: dict[str, int]
    kl_before: RepairInterval
    kl_after: RepairInterval
    left_out: tuple[str, ...] = ()
    repeated: int = 0
    resumed: str = ""


class RepairResult(PackedResult):
    """repaired: what the training came to. quality: measured on the held-out text."""

    repaired: RepairFigures
    quality: Quality | None = None

    @property
    def measured(self) -> Quality | None:
        return self.quality


@KINDS.register
class Repair(Kind[RepairSpec, RepairResult]):
    """Train what is small in a packed checkpoint towards the original."""

    name = "repair"
    steps = ("train", "verify")
    spec = RepairSpec
    result = RepairResult

    def title(self, spec: RepairSpec) -> str:
        return spec.name or f"Repair {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: RepairSpec) -> RepairResult:
        from ders_core.packed.reader import PackedCheckpoint

        source, original = context.allowed(spec.checkpoint), context.allowed(spec.original)
        text = context.allowed_texts(spec.text)
        heldout = None if spec.heldout is None else context.allowed_texts(spec.heldout)
        directory = context.directory()
        packed, device = directory / PACKED, context.device(spec.device)
        trained = context.step(
            "train",
            lambda: _train(context, spec, source, original, packed, text, heldout, device),
            directory / RESULT,
        )
        verification = context.step(
            "verify",
            lambda: _verify(context, packed, original),
            directory / "verification.json",
        )
        written = PackedCheckpoint(packed)
        before = written.manifest.source.bytes_total
        return RepairResult.model_validate(
            {
                "packed": str(packed),
                "repaired": trained,
                "quality": trained["after"],
                "verification": verification,
                "bytes_before": before,
                "bytes_after": written.bytes_total,
                "ratio": written.bytes_total / before,
                "device": device,
            }
        )


def _train(
    context: TaskContext,
    spec: RepairSpec,
    source: Path,
    original: Path,
    packed: Path,
    text: tuple[Path, ...],
    heldout: tuple[Path, ...] | None,
    device: str,
) -> dict[str, Any]:
    from ders_core.repair.repairer import repair

    if packed.exists():  # an earlier attempt finished it and died before it wrote the result
        shutil.rmtree(packed)
    names = ("steps", "batch", "window", "rate")
    fields: dict[str, Any] = {name: getattr(spec, name) for name in names}
    if spec.train:
        fields["train"] = spec.train
    result = repair(
        source,
        original,
        packed,
        text=text,
        heldout=heldout,
        settings=RepairSettings.of(fields),
        device=device,
        resume=True,
        trust_remote_code=spec.trust_remote_code,
        progress=context.progress,
    )
    for note in (result.resumed, *result.left_out):
        if note:
            context.log(note)
    return result.to_dict()


def _verify(context: TaskContext, packed: Path, original: Path) -> dict[str, Any]:
    from ders_core.pipeline.verify import verify

    verification = verify(packed, original, progress=context.progress)
    if not verification.ok:
        (context.directory() / RESULT).unlink()
        shutil.rmtree(packed)
        raise OutputError(f"{verification.problems[0]}; resume this run to train it again")
    return verification.to_dict()

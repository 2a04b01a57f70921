"""What jobs have in common that score a checkpoint, solve, and measure what is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ders_core.jobs.kind import Device, Spec, TextSpec

if TYPE_CHECKING:
    from ders_core.checkpoint import Checkpoint
    from ders_core.files.named_texts import NamedTexts
    from ders_core.jobs.context import TaskContext
    from ders_core.tune.constraints import Constraint
    from ders_core.tune.measuring import Setting
    from ders_core.tune.scores import Scores

TRIALS = "trials"


class MeasuredSpec(Spec):
    """calibration: of the checkpoint, with gradients. text: that the calibration never saw, as of a
    run. friendly: forms alone that hardware decodes easily. keep: layers that stay as they are.
    pin, floor: LAYERS=CODEC of deltas, and LAYERS=BITS a weight at least.
    trust_remote_code: evaluate with code that comes with the model, which runs with the worker's
    rights."""

    checkpoint: str
    calibration: str
    text: TextSpec
    friendly: bool = False
    keep: str = ""
    pin: tuple[str, ...] = ()
    floor: tuple[str, ...] = ()
    name: str = ""
    device: Device = "auto"
    max_tokens: int = Field(default=8192, ge=2)
    trust_remote_code: bool = False


@dataclass
class MeasuredTuning:
    """A job at work: its inputs, checked, and the scores, which are made when they are needed."""

    context: TaskContext
    spec: MeasuredSpec
    checkpoint: Path
    calibration: Path
    text: NamedTexts
    device: str

    @classmethod
    def of(cls, context: TaskContext, spec: MeasuredSpec) -> MeasuredTuning:
        """Raises JobError for what the job may not read."""
        return cls(
            context,
            spec,
            context.allowed(spec.checkpoint),
            context.allowed(spec.calibration),
            context.allowed_named_texts(spec.text),
            context.device(spec.device),
        )

    @cached_property
    def source(self) -> Checkpoint:
        from ders_core.packed.open import open_checkpoint

        return open_checkpoint(self.checkpoint)

    @cached_property
    def scores(self) -> Scores:
        from ders_core.tune.scoring import score

        return score(
            self.source,
            self.calibration,
            directory=self.context.workspace.scores,
            progress=self.context.progress,
        )

    @cached_property
    def constraints(self) -> list[Constraint]:
        """Raises RecipeError and CodecError, also for one that is about nothing in the model."""
        from ders_core.tune.constraints import check_selecting
        from ders_core.tune.demand import constraints_of
        from ders_core.tune.units import units_of

        spec = self.spec
        constraints = constraints_of(spec.keep or None, (), spec.pin, spec.floor)
        check_selecting(constraints, units_of(self.source))
        return constraints

    def scored(self) -> dict[str, Any]:
        """What the step that scores tells. Constraints are checked before that work."""
        self.constraints  # noqa: B018
        return {"units": len(self.scores.units)}

    @property
    def trials(self) -> Path:
        """Where the job keeps what it measured."""
        return self.context.directory() / TRIALS

    @property
    def setting(self) -> Setting:
        from ders_core.tune.measuring import Setting

        return Setting(
            self.text,
            device=self.device,
            max_tokens=self.spec.max_tokens,
            trust_remote_code=self.spec.trust_remote_code,
        )

    @property
    def wishes(self) -> dict[str, Any]:
        """The parameters by name that `prove` and `series` share."""
        return {
            "constraints": self.constraints,
            "friendly": self.spec.friendly,
            "name": self.spec.name or "tuned",
            "progress": self.context.progress,
        }

"""Tune a checkpoint by a calibration, and prove the recipe on another text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ders_core.jobs.kind import KINDS, Device, Kind, Result, Spec, TextSpec
from ders_core.jobs.workspace import place_label
from ders_core.tune.bounds import Bound
from ders_core.tune.trials import Trial

if TYPE_CHECKING:
    from ders_core.files.named_texts import NamedTexts
    from ders_core.jobs.context import TaskContext
    from ders_core.tune.prove import Proof
    from ders_core.tune.scores import Scores

TRIALS = "trials"
PROOF = "proof.json"


class ProveSpec(Spec):
    """calibration: of the checkpoint, with gradients. text: that the calibration never saw, as of a
    run. budget: as `ders_core.tune.Bound.parse` reads it; or max_kl, nats a token. friendly: forms
    alone that hardware decodes easily. keep: layers that stay as they are. trust_remote_code:
    evaluate with code that comes with the model, which runs with the worker's rights."""

    checkpoint: str
    calibration: str
    text: TextSpec
    budget: str | None = None
    max_kl: float | None = Field(default=None, gt=0)
    friendly: bool = False
    keep: str = ""
    name: str = ""
    device: Device = "auto"
    max_tokens: int = Field(default=8192, ge=2)
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.budget is None) == (self.max_kl is None):
            raise ValueError("give a budget or a max_kl, one of the two")
        return self

    @property
    def bound(self) -> Bound:
        """Raises RecipeError for a budget that cannot be read."""
        if self.budget is not None:
            return Bound.parse(self.budget)
        assert self.max_kl is not None, "there is one of the two"
        return Bound("kl", self.max_kl)


class ProveResult(Result):
    """sentence: what came of it. trials: all that were measured. best: the number of the one that
    is kept; None if none keeps to the bound. factors: measured over predicted, of each form."""

    bound: str
    sentence: str
    trials: tuple[Trial, ...]
    best: int | None = None
    factors: dict[str, float] = Field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    bytes_before: int


@KINDS.register
class Prove(Kind[ProveSpec, ProveResult]):
    """Score, solve, measure, solve again."""

    name = "prove"
    steps = ("score", "prove")
    spec = ProveSpec
    result = ProveResult

    def title(self, spec: ProveSpec) -> str:
        return spec.name or f"Prove {place_label(spec.checkpoint)}"

    def run(self, context: TaskContext, spec: ProveSpec) -> ProveResult:
        bound = spec.bound
        checkpoint, calibration = (
            context.allowed(spec.checkpoint),
            context.allowed(spec.calibration),
        )
        text, device = context.allowed_named_texts(spec.text), context.device(spec.device)
        directory = context.directory()
        scores: list[Scores] = []

        def score() -> dict[str, Any]:
            scores.append(_scores(context, checkpoint, calibration))
            return {"units": len(scores[0].units)}

        context.step("score", score)

        def proved() -> dict[str, Any]:
            made = scores[0] if scores else _scores(context, checkpoint, calibration)
            proof = _prove(context, spec, checkpoint, calibration, made, bound, text, device)
            return {
                "bound": bound.label,
                "sentence": proof.sentence,
                "trials": [trial.model_dump(mode="json") for trial in proof.trials],
                "best": proof.best,
                "factors": dict(proof.factors),
                "remarks": list(proof.remarks),
                "bytes_before": made.bytes_total,
            }

        return ProveResult.model_validate(context.step("prove", proved, directory / PROOF))


def _scores(context: TaskContext, checkpoint: Path, calibration: Path) -> Scores:
    from ders_core.packed.open import open_checkpoint
    from ders_core.tune.scoring import score

    return score(
        open_checkpoint(checkpoint),
        calibration,
        directory=context.workspace.scores,
        progress=context.progress,
    )


def _prove(
    context: TaskContext,
    spec: ProveSpec,
    checkpoint: Path,
    calibration: Path,
    scores: Scores,
    bound: Bound,
    text: NamedTexts,
    device: str,
) -> Proof:
    from ders_core.packed.open import open_checkpoint
    from ders_core.tune.demand import kept_layers
    from ders_core.tune.measuring import Setting
    from ders_core.tune.prove import prove

    setting = Setting(
        text,
        device=device,
        max_tokens=spec.max_tokens,
        trust_remote_code=spec.trust_remote_code,
    )
    return prove(
        open_checkpoint(checkpoint),
        scores,
        calibration,
        bound,
        context.directory() / TRIALS,
        setting,
        constraints=[kept_layers(spec.keep)] if spec.keep else [],
        friendly=spec.friendly,
        name=spec.name or "tuned",
        progress=context.progress,
    )

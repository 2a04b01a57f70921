"""Tune a checkpoint by a calibration, and prove the recipe on another text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ders_core.jobs.kind import KINDS, Kind, Result
from ders_core.jobs.measured_tuning import MeasuredSpec, MeasuredTuning
from ders_core.jobs.workspace import place_label
from ders_core.tune.bounds import Bound
from ders_core.tune.trials import Trial

if TYPE_CHECKING:
    from ders_core.jobs.context import TaskContext

PROOF = "proof.json"


class ProveSpec(MeasuredSpec):
    """budget: as `ders_core.tune.Bound.parse` reads it; or max_kl, nats a token."""

    budget: str | None = None
    max_kl: float | None = Field(default=None, gt=0)

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
        bound, work = spec.bound, MeasuredTuning.of(context, spec)
        context.step("score", work.scored)

        def proved() -> dict[str, Any]:
            from ders_core.tune.prove import prove

            found = (work.source, work.scores, work.calibration)
            proof = prove(*found, bound, work.trials, work.setting, **work.wishes)
            return {
                "bound": bound.label,
                "sentence": proof.sentence,
                "trials": [trial.model_dump(mode="json") for trial in proof.trials],
                "best": proof.best,
                "factors": dict(proof.factors),
                "remarks": list(proof.remarks),
                "bytes_before": work.scores.bytes_total,
            }

        done = context.directory() / PROOF
        return ProveResult.model_validate(context.step("prove", proved, done))

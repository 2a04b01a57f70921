"""From a budget to a recipe: calibrate, score, allocate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.sampling import LARGER
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint
from ders_core.tune.scores import Scores
from ders_core.tune.scoring import score
from ders_core.tune.uniform import Rival, one_knob
from ders_core.tune.written import as_recipe

MOST_TRIED = 3
"""Sizes that are asked for, until a larger sample is within the bound too."""

SPARE = 0.002
"""Share of a size that is left free where more was taken than foretold."""


@dataclass(frozen=True)
class Tuned:
    """recipe: to compress with. told: what a larger sample foretells of it. one_knob: what a budget
    of one knob would come to within the same bytes, by the same scores; None if none is within."""

    recipe: Recipe
    allocation: Allocation
    scores: Scores
    told: Forecast
    one_knob: Rival | None

    def to_dict(self) -> dict[str, Any]:
        """As `ders tune --json` prints it."""
        allocation = self.allocation
        return {
            "bound": {"measure": allocation.bound.measure, "most": allocation.bound.most},
            "bytes_before": self.scores.bytes_total,
            "bytes_after": self.told.bytes_after,
            "bytes_read": allocation.read,
            "predicted_kl": self.told.predicted_kl,
            "gap": allocation.gap,
            "one_knob": None if self.one_knob is None else vars(self.one_knob),
            "rare": [each.sentence for each in self.scores.rare],
            "unmeasured": list(self.scores.unmeasured),
            "recipe": self.recipe.model_dump(mode="json"),
            "units": [
                {
                    "unit": each.scored.unit.label,
                    "codec": "none" if each.candidate is None else each.candidate.codec.label,
                    "bytes": 0 if each.candidate is None else each.candidate.nbytes,
                    "bits": 0.0 if each.candidate is None else each.scored.bits(each.candidate),
                    "predicted_kl": 0.0 if each.candidate is None else each.candidate.noise,
                }
                for each in allocation.chosen
            ],
        }


def tune(
    checkpoint: Checkpoint,
    bound: Bound,
    calibration: Path,
    *,
    constraints: Sequence[Constraint] = (),
    friendly: bool = False,
    per_expert: bool = False,
    name: str = "tuned",
    directory: Path | None = None,
    progress: Progress = quiet,
) -> Tuned:
    """Find the recipe with the least predicted KL within a bound; of a KL, with the least bytes.

    calibration: of this checkpoint, with gradients and others (`ders calibrate --gradients
    --others`). constraints, friendly: as of `solve`. per_expert, directory: as of `score`.
    What scores foretell of bytes is compared with a larger sample of the recipe, of groups of low
    rank with whole matrices of a few experts, and a smaller size is asked for where that takes
    more. Raises RecipeError if nothing meets the bound, CheckpointError as `score` does.
    """
    scores = score(
        checkpoint,
        calibration,
        per_expert=per_expert,
        directory=directory,
        progress=progress,
    )
    solver = Solver(scores, bound.measure, constraints=constraints, friendly=friendly)
    asked, tried = bound, 0
    while True:
        allocation = solver.solve(asked)
        recipe = as_recipe(allocation, checkpoint, calibration, name=name)
        plan = resolve(recipe, checkpoint)
        told = forecast(plan, checkpoint, progress=progress, extent=LARGER, whole=True)
        tried += 1
        over = _over(bound, told.bytes_after, checkpoint.bytes_total)
        if over <= 1 or tried == MOST_TRIED:
            break
        asked = replace(asked, most=asked.most / over * (1 - SPARE))
    rival = one_knob(scores, allocation.nbytes)
    return Tuned(recipe, replace(allocation, bound=bound), scores, told, rival)


def _over(bound: Bound, nbytes: int, before: int) -> float:
    """The weight files as a multiple of what the bound allows; 0 where it is about something
    else."""
    if bound.measure not in ("bytes", "share"):
        return 0.0
    return nbytes / (bound.most * (before if bound.measure == "share" else 1))

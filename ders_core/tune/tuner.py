"""From a budget to a recipe: calibrate, score, allocate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.as_recipe import as_recipe
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint
from ders_core.tune.scores import Scores
from ders_core.tune.scoring import score
from ders_core.tune.uniform import Rival, one_knob


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
    Raises RecipeError if nothing meets the bound, CheckpointError as `score` does.
    """
    scores = score(
        checkpoint,
        calibration,
        per_expert=per_expert,
        directory=directory,
        progress=progress,
    )
    solver = Solver(scores, bound.measure, constraints=constraints, friendly=friendly)
    allocation = solver.solve(bound)
    recipe = as_recipe(allocation, checkpoint, calibration, name=name)
    told = forecast(resolve(recipe, checkpoint), checkpoint, progress=progress)
    return Tuned(recipe, allocation, scores, told, one_knob(scores, allocation.nbytes))

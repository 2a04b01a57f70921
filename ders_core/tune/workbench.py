"""Where recipes are tried: solved, measured, and what was measured corrects the next solution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ders_core.errors import RecipeError
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation, solve
from ders_core.tune.bounds import Bound
from ders_core.tune.by_hand import best_uniform
from ders_core.tune.constraints import Constraint
from ders_core.tune.corrections import corrected, costs_by_form, fitted_factors
from ders_core.tune.measuring import Measuring
from ders_core.tune.scores import Scores
from ders_core.tune.trials import Measurement, Role, Trial
from ders_core.tune.written import as_recipe


@dataclass
class Workbench:
    """scores: as they were made. calibration: which recipes name. trials: all that were measured,
    in this order. factors: measured over predicted, of each form."""

    measuring: Measuring
    scores: Scores
    calibration: Path
    constraints: Sequence[Constraint] = ()
    friendly: bool = False
    name: str = "tuned"
    trials: list[Trial] = field(default_factory=list)
    factors: dict[str, float] = field(default_factory=dict)

    def solved(self, bound: Bound) -> Allocation | None:
        """By scores that know the factors; None if nothing meets the bound."""
        scores = corrected(self.scores, self.factors) if self.factors else self.scores
        try:
            return solve(scores, bound, constraints=self.constraints, friendly=self.friendly)
        except RecipeError:
            return None

    def uniform(self, bound: Bound, most: int) -> Iterator[tuple[str, Allocation]]:
        """Forms and their best uniform recipes that were not measured yet, of the `most` best."""
        found = best_uniform(
            self.scores, bound, constraints=self.constraints, friendly=self.friendly
        )
        for form, allocation in list(found.items())[:most]:
            if not self.is_known(allocation):
                yield form, allocation

    def is_known(self, allocation: Allocation) -> bool:
        """Whether its recipe was measured."""
        recipe = self._recipe(allocation).to_yaml()
        return any(trial.recipe == recipe for trial in self.trials)

    def measured(self, allocation: Allocation, bound: Bound, role: Role, form: str = "") -> Trial:
        """Compress and measure, and fit the factors to all trials.

        bound: what it is to keep to, of the allocation's measure; the allocation may have been
        solved for a tighter one.
        """
        recipe = self._recipe(allocation)
        what = f"recipe {len(self.trials) + 1}, {'tuned' if role == 'tuned' else form}"
        measurement = self.measuring.measure(recipe, what)
        size = self._size(allocation, measurement)
        by_kl = bound.measure == "kl"
        most = size if by_kl else allocation.most * bound.most / allocation.bound.most
        trial = Trial(
            role=role,
            form=form,
            recipe=recipe.to_yaml(),
            predicted_kl=allocation.predicted_kl,
            foretold_bytes=allocation.nbytes,
            size=size,
            most=most,
            keeps=measurement.kl <= bound.most if by_kl else size <= most,
            costs=self._uncorrected(costs_by_form(self.scores, allocation)),
            measured=measurement,
        )
        self.trials.append(trial)
        self.factors = fitted_factors([(each.costs, each.measured.kl) for each in self.trials])
        return trial

    def _recipe(self, allocation: Allocation) -> Recipe:
        checkpoint = self.measuring.checkpoint
        return as_recipe(allocation, checkpoint, self.calibration, name=self.name)

    def _uncorrected(self, costs: dict[str, float]) -> dict[str, float]:
        """Costs as of the scores that were made, before factors multiplied them."""
        return {name: cost / self.factors.get(name, 1.0) for name, cost in costs.items()}

    def _size(self, allocation: Allocation, measurement: Measurement) -> float:
        """In the bound's measure. Bytes read for a token are foretold, in proportion to bytes."""
        if allocation.bound.measure == "bits":
            return 8 * measurement.expert_bytes / self.scores.expert_weights
        if allocation.bound.measure == "read":
            return allocation.read * measurement.nbytes / allocation.nbytes
        return float(measurement.nbytes)

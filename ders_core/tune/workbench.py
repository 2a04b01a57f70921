"""Where recipes are tried: solved, measured, and what was measured corrects the next solution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ders_core.errors import RecipeError
from ders_core.recipe import Recipe
from ders_core.tune.allocate import Allocation, solve
from ders_core.tune.bounds import Bound
from ders_core.tune.by_hand import best_uniform
from ders_core.tune.constraints import Constraint
from ders_core.tune.corrections import (
    corrected,
    costs_by_form,
    fitted_factors,
    uncorrected,
)
from ders_core.tune.measuring import Measuring
from ders_core.tune.scores import Scores
from ders_core.tune.trials import Measurement, Role, Trial
from ders_core.tune.written import as_recipe


@dataclass(frozen=True)
class Proposal:
    """What is to be measured. factors: of the scores by which it was found."""

    allocation: Allocation
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Workbench:
    """scores: as they were made. calibration: which recipes name. trials: all that were measured,
    in this order. factors: measured over predicted, of each form. belief: the power to which
    solutions take them; 0 for predictions as they were."""

    measuring: Measuring
    scores: Scores
    calibration: Path
    constraints: Sequence[Constraint] = ()
    friendly: bool = False
    name: str = "tuned"
    trials: list[Trial] = field(default_factory=list)
    factors: dict[str, float] = field(default_factory=dict)
    belief: float = 1.0

    def solved(self, bound: Bound) -> Proposal | None:
        """By scores that know the factors; None if nothing meets the bound."""
        believed = {form: factor**self.belief for form, factor in self.factors.items()}
        scores = corrected(self.scores, believed) if believed else self.scores
        try:
            found = solve(scores, bound, constraints=self.constraints, friendly=self.friendly)
        except RecipeError:
            return None
        return Proposal(found, believed)

    def uniform(self, bound: Bound, most: int) -> Iterator[tuple[str, Proposal]]:
        """Forms and their best uniform recipes that were not measured yet, of the `most` best."""
        found = best_uniform(
            self.scores, bound, constraints=self.constraints, friendly=self.friendly
        )
        for form, allocation in list(found.items())[:most]:
            proposal = Proposal(allocation)
            if not self.is_known(proposal):
                yield form, proposal

    def is_known(self, proposal: Proposal) -> bool:
        """Whether its recipe was measured."""
        recipe = self._recipe(proposal.allocation).to_yaml()
        return any(trial.recipe == recipe for trial in self.trials)

    def measured(self, proposal: Proposal, bound: Bound, role: Role, form: str = "") -> Trial:
        """Compress and measure, and fit the factors to all trials.

        bound: what it is to keep to, of the allocation's measure; the allocation may have been
        solved for a tighter one.
        """
        allocation = proposal.allocation
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
            costs=costs_by_form(
                self.scores, uncorrected(self.scores, allocation, proposal.factors)
            ),
            measured=measurement,
        )
        self.trials.append(trial)
        self.factors = fitted_factors([(each.costs, each.measured.kl) for each in self.trials])
        return trial

    def _recipe(self, allocation: Allocation) -> Recipe:
        checkpoint = self.measuring.checkpoint
        return as_recipe(allocation, checkpoint, self.calibration, name=self.name)

    def _size(self, allocation: Allocation, measurement: Measurement) -> float:
        """In the bound's measure. Bytes read for a token are foretold, in proportion to bytes."""
        if allocation.bound.measure == "bits":
            return 8 * measurement.expert_bytes / self.scores.expert_weights
        if allocation.bound.measure == "read":
            return allocation.read * measurement.nbytes / allocation.nbytes
        return float(measurement.nbytes)

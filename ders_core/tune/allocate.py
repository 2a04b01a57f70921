"""From scores and a bound to the codec of each unit. Numbers alone: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ders_core.errors import RecipeError
from ders_core.later import np
from ders_core.tune.bounds import Bound, Measure
from ders_core.tune.constraints import Constraint
from ders_core.tune.coupling import Loss, Slopes
from ders_core.tune.knapsack import Options, Solution, least_loss, least_size, nearly_least_loss
from ders_core.tune.problem import Problem
from ders_core.tune.refine import Picked, refined
from ders_core.tune.scores import Candidate, Scores, UnitScores
from ders_core.units import bytes_text, number_text, share_text

ROUNDS = 12
"""How often what meets is weighed again at what was found, at most."""

PATIENCE = 4
"""After so many rounds in a row that make the KL no smaller, there is no other."""

DAMPING = 0.3
"""How far each round goes from what was weighed before to what was found. All units that lose
together give way at once where one would do, and all come back in the next round: whole steps would
go to and fro."""

TRIES, NEAR = 24, 2e-3
"""Sizes that are tried for a bound of KL; how near to it is near enough, as a share."""

SMALL = 1000
"""Candidates of all units up to which sums are searched in each round, and not at the end alone."""

HALVED, EDGE = 4, 0.05
"""Each of so many tries is in the middle; the others stay this far from the ends, as a share."""


@dataclass(frozen=True)
class Chosen:
    """What a unit gets. candidate: None for a base that is not there, because its group stays as it
    is."""

    scored: UnitScores
    candidate: Candidate | None


@dataclass(frozen=True)
class Allocation:
    """nbytes: of the weight files, foretold. read: bytes that are read for a token. predicted_kl:
    nats a token on text like the calibration's. size, most: what is taken and what there may be, in
    the bound's measure; for a bound of KL both are bytes. gap: how far the sum of losses, near the
    point that was found, may be above the least there is, as a share of that."""

    bound: Bound
    chosen: tuple[Chosen, ...]
    nbytes: int
    read: float
    predicted_kl: float
    size: float
    most: float
    gap: float


@dataclass(frozen=True)
class _Draft:
    """An allocation before it is refined. most: as of `Allocation`. slopes: near which losses were
    added up. solution: with about the least sum."""

    picked: Picked
    most: float
    slopes: Slopes
    solution: Solution


def solve(
    scores: Scores,
    bound: Bound,
    *,
    constraints: Sequence[Constraint] = (),
    friendly: bool = False,
) -> Allocation:
    """The allocation with the least predicted KL within a bound; for a bound of KL, with the least
    bytes. constraints: where several are about a unit, all of them count. friendly: forms alone
    that hardware decodes easily. Raises RecipeError if nothing meets bound and constraints, and if
    a constraint is about no unit."""
    return Solver(scores, bound.measure, constraints=constraints, friendly=friendly).solve(bound)


class Solver:
    """Solves again and again with the same scores and constraints, for bounds of one measure."""

    def __init__(
        self,
        scores: Scores,
        measure: Measure,
        *,
        constraints: Sequence[Constraint] = (),
        friendly: bool = False,
    ) -> None:
        """Raises RecipeError if the constraints leave a unit nothing, or one is about none."""
        self._scores = scores
        self._problem = Problem.of(scores, measure, constraints, friendly=friendly)
        is_small = self._problem.candidate_count <= SMALL
        self._least_sum = least_loss if is_small else nearly_least_loss

    def solve(self, bound: Bound) -> Allocation:
        """As the function of this name. bound: of the solver's measure."""
        draft, problem = self._searched(self._draft(bound)), self._problem
        limit = draft.most - problem.size_beside
        picked = refined(problem, self._scores.coupling, draft.picked, limit)
        return self._allocation(bound, draft, picked)

    def sketch(self, bound: Bound) -> Allocation:
        """Sooner than `solve`, and not refined: it may lose a little more."""
        draft = self._draft(bound)
        return self._allocation(bound, draft, draft.picked)

    def _searched(self, draft: _Draft) -> _Draft:
        """The best sum near the point that was found, if it is better by the whole too."""
        tables = [choice.options(draft.slopes) for choice in self._problem.choices]
        limit = draft.most - self._problem.size_beside
        solution = least_loss([options for options, _ in tables], limit)
        assert solution is not None, "the draft keeps to the limit"
        picked = self._picked(tables, solution)
        better = min(draft.picked, picked, key=lambda each: each.kl)
        return replace(draft, picked=better, solution=solution)

    def _picked(self, tables: Sequence[tuple[Options, np.ndarray]], solution: Solution) -> Picked:
        picks = [pairs[n] for (_, pairs), n in zip(tables, solution.chosen, strict=True)]
        return Picked.of(self._problem, self._scores.coupling, picks)

    def _draft(self, bound: Bound) -> _Draft:
        if bound.measure == "kl":
            return self._least_bytes(bound)
        total = self._scores.bytes_total
        return self._least_kl(bound, bound.most * (total if bound.measure == "share" else 1.0))

    @property
    def sizes(self) -> tuple[float, float]:
        """The least that everything takes, and the least at which nothing is lost that need not
        be; in the measure, of a share or a KL in bytes."""
        least = lossless = self._problem.size_beside
        slopes = self._scores.coupling.apart(self._nothing)
        for choice in self._problem.choices:
            options, _ = choice.options(slopes)
            least += float(options.sizes.min())
            lossless += float(options.sizes[options.losses == options.losses.min()].min())
        return least, lossless

    @property
    def _nothing(self) -> Loss:
        return self._problem.loss([None] * len(self._scores.units))

    def _least_kl(self, bound: Bound, most: float, near: Slopes | None = None) -> _Draft:
        """In rounds: losses are added up as they meet near what was found so far. near: slopes of
        another size."""
        problem, coupling = self._problem, self._scores.coupling
        best: _Draft | None = None
        slopes, idle = near or coupling.apart(self._nothing), 0
        for number in range(ROUNDS):
            tables = [choice.options(slopes) for choice in problem.choices]
            options = [each for each, _ in tables]
            solution = self._least_sum(options, most - problem.size_beside)
            if solution is None:
                raise self._refusal(bound, least_size(options) + problem.size_beside)
            picked, idle = self._picked(tables, solution), idle + 1
            if best is None or picked.kl < best.picked.kl:
                best, idle = _Draft(picked, most, slopes, solution), 0
            if idle == PATIENCE:
                break
            step = DAMPING if number or near else 1.0
            slopes = slopes.towards(coupling.slopes(picked.loss), step)
        assert best is not None, "the first round finds something"
        return best

    def _least_bytes(self, bound: Bound) -> _Draft:
        """Between the smallest size that there is and one that loses nothing: where a power of the
        size would keep to the bound, and now and then in the middle."""
        problem = self._problem
        slopes = self._scores.coupling.apart(self._nothing)
        options = [choice.options(slopes)[0] for choice in problem.choices]
        low = least_size(options) + problem.size_beside
        best = self._least_kl(bound, sum(float(each.sizes.max()) for each in options) + low)
        if best.picked.kl > bound.most:
            raise RecipeError(
                f"no choice keeps to {bound.label}: the least that is predicted is "
                f"{number_text(best.picked.kl)}; give a larger one, or fewer constraints"
            )
        high, too_much = problem.size_of(best.picked.picks), 0.0
        for number in range(TRIES):
            if high - low <= NEAR * high or best.picked.kl >= bound.most * (1 - NEAR):
                break
            share = 0.5
            if number % HALVED and 0 < best.picked.kl < too_much:
                ratio = math.log(too_much / bound.most) / math.log(too_much / best.picked.kl)
                share = min(max(ratio, EDGE), 1 - EDGE)
            size = low * (high / low) ** share
            near = best.slopes if number % HALVED else None
            tried = self._searched(self._least_kl(bound, size, near))
            if tried.picked.kl <= bound.most:
                best, high = tried, problem.size_of(tried.picked.picks)
            else:
                low, too_much = tried.most, tried.picked.kl
        return replace(best, most=high)

    def _allocation(self, bound: Bound, draft: _Draft, picked: Picked) -> Allocation:
        beside, problem = self._scores.bytes_beside, self._problem
        candidates = problem.candidates(picked.picks)
        pairs = list(zip(self._scores.units, candidates, strict=True))
        loss = problem.loss_near(draft.slopes, picked.picks)
        return Allocation(
            bound,
            tuple(Chosen(*pair) for pair in pairs),
            sum(each.nbytes for _, each in pairs if each is not None) + beside,
            sum(scored.read * each.nbytes for scored, each in pairs if each is not None) + beside,
            picked.kl,
            problem.size_of(picked.picks),
            draft.most,
            replace(draft.solution, loss=loss).gap,
        )

    def _refusal(self, bound: Bound, least: float) -> RecipeError:
        if bound.measure == "bits":
            needed = f"{number_text(least)} bits a weight"
        elif bound.measure == "share":
            share = share_text(least / self._scores.bytes_total)
            needed = f"{bytes_text(least)}, {share} of the original"
        else:
            needed = bytes_text(least)
        return RecipeError(
            f"nothing keeps to {bound.label}: the least that the constraints allow takes {needed}; "
            "give a larger budget, or fewer constraints"
        )

"""From a budget to the knob that meets it, by samples of every matrix."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Lossless
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import CodecError, RecipeError
from ders_core.files.inputs import unchanged_inputs
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.forecast import SAMPLE, Forecast, forecast
from ders_core.pipeline.plan import Plan, check_files, resolve
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.recipe.budget import Budget, codec_of_deltas, codec_of_matrices, names_apart
from ders_core.recipe.rule import MOST_NAMES, USUAL_KINDS
from ders_core.units import bytes_text

SPARE = 0.004
"""Share of a budget of bytes that is left free: a sample tells bytes within about as much."""

CLOSE = 0.01
"""Octaves: a knob whose bytes or KL are so near to the budget, and within it, is taken."""

LARGER = 8
"""Times the usual sample, of rows and of experts: tables weigh less in it, and experts are not
alike. What is taken is judged by it, with errors made up for; knobs are tried without, which needs
no moments of inputs and far less time."""

MOST_JUDGED = 4
"""Knobs that are judged so."""

MOST_TRIED = 16

FIRST = 2.0**-16
"""The knob that is tried first; its unit is √(nats a token)."""

LEAST, MOST = -60, 12
"""The knobs that are tried, as powers of 2."""


@dataclass(frozen=True)
class Settled:
    """A recipe whose budget has become rules. plan: of the recipe. told: what a sample foretells;
    None where the budget is a knob, which needs no sample."""

    recipe: Recipe
    knob: float
    plan: Plan
    told: Forecast | None


def settle(recipe: Recipe, checkpoint: Checkpoint, *, progress: Progress = quiet) -> Recipe:
    """The recipe with rules in the place of its budget; one without a budget as it is.

    Raises as `settled`.
    """
    if recipe.budget is None:
        return recipe
    return settled(recipe, recipe.budget, checkpoint, progress=progress).recipe


@unchanged_inputs()
def settled(
    recipe: Recipe, budget: Budget, checkpoint: Checkpoint, *, progress: Progress = quiet
) -> Settled:
    """Find the knob that meets a budget, and write it out as rules.

    The recipe's own rules come last, so they count where they select something. Tensors that the
    calibration did not measure are kept without loss. The same recipe, checkpoint and calibration
    give the same knob. progress counts knobs tried. Raises RecipeError if the budget cannot be met,
    CheckpointError if the calibration lacks what a knob needs.
    """
    assert recipe.calibration is not None, "a recipe with a budget has one"
    measured = set(Calibration.open(recipe.calibration).others.names)
    unknown = [
        name
        for name, other in checkpoint.others.items()
        if other.kind in USUAL_KINDS and name not in measured
    ]
    check_files(with_knob(recipe, FIRST, unknown), checkpoint)
    if budget.knob is not None:
        chosen = with_knob(recipe, budget.knob, unknown)
        return Settled(chosen, budget.knob, resolve(chosen, checkpoint), None)
    search = _Search(recipe, unknown, checkpoint, budget, progress)
    return search.settled()


def with_knob(
    recipe: Recipe, knob: float, unknown: Collection[str], *, compensated: bool = True
) -> Recipe:
    """The recipe with rules for all matrices by one knob before its own rules, and no budget.
    unknown: tensors outside the experts that are kept without loss. compensated: as of
    `codec_of_matrices`."""
    matrices = codec_of_matrices(knob, compensated=compensated)
    apart = [OtherRule(names=names, codec=Lossless()) for names in names_apart(unknown, MOST_NAMES)]
    stored = recipe.base.is_stored
    base_rules = (BaseRule(codec=matrices), *recipe.base_codec) if stored else ()
    return recipe.changed(
        version=1,
        budget=None,
        rules=(Rule(codec=codec_of_deltas(knob) if stored else matrices), *recipe.rules),
        base_codec=base_rules,
        base_error="shared" if stored else "absorbed",
        others=(OtherRule(codec=matrices), *apart, *recipe.others),
    )


@dataclass(frozen=True)
class _Point:
    """A knob that was tried. at: its logarithm to base 2. over: by how many octaves it is above
    what the budget allows; negative where it is within. weight: of `over` in false position."""

    at: float
    over: float
    weight: float = 1.0

    def below(self, octaves: float) -> _Point:
        """The point, where so much more is allowed."""
        return replace(self, over=self.over - octaves)

    def lighter(self, is_again: bool) -> _Point:
        """The point with half the weight, if the other side was found again."""
        return replace(self, weight=self.weight / 2) if is_again else self


@dataclass(frozen=True)
class _Judged:
    """A knob with what a larger sample tells. over: as of `_Point`."""

    settled: Settled
    told: Forecast
    over: float


class _Search:
    """Looks for the knob that comes nearest to the budget from within.

    Knobs are tried with a small sample; the one that seems to meet the budget is judged by a larger
    one, and if that tells otherwise, the search goes on from there with as much more or less
    allowed.
    """

    def __init__(
        self,
        recipe: Recipe,
        unknown: Collection[str],
        checkpoint: Checkpoint,
        budget: Budget,
        progress: Progress,
    ) -> None:
        self._recipe, self._unknown, self._checkpoint = recipe, unknown, checkpoint
        self._budget, self._progress = budget, progress
        self._allowed = 0.0  # octaves by which small samples may be above the budget
        self._judged = list[_Judged]()
        self._least = math.inf  # bytes
        self._coarser = 1 if budget.kl is None else -1  # which way less is taken of the budget
        most = budget.bytes or (budget.share or 0.0) * checkpoint.bytes_total
        self._most = budget.kl if budget.kl is not None else most * (1 - SPARE)

    def settled(self) -> Settled:
        """By false position (Illinois) between a knob that is over the budget and one within it;
        until there are both, in steps as long as bits and KL let expect."""
        over: _Point | None = None
        within: _Point | None = None
        at = math.log2(FIRST)
        for number in range(MOST_TRIED):
            self._progress(number, MOST_TRIED, f"trying knob {2**at:.3g}")
            point = self._try(at)
            if -CLOSE <= point.over <= 0:
                judged = self._judge(at)
                if -CLOSE <= judged.over <= 0 or len(self._judged) == MOST_JUDGED:
                    break
                moved = point.over - judged.over
                self._allowed += moved
                point = point.below(moved)
                over, within = over and over.below(moved), within and within.below(moved)
                if over is not None and over.over <= 0:  # what was too much is not any more
                    point, at, over = over, over.at, None
                elif within is not None and within.over > 0:
                    point, at, within = within, within.at, None
            if point.over > 0:
                within = within and within.lighter(over is not None)
                over = point
            else:
                over = over and over.lighter(within is not None)
                within = point
            if over is None or within is None:
                at += self._step(point)
            else:
                at = _between(over, within)
            if not LEAST <= at <= MOST:
                break
        return self._best(within)

    def _best(self, within: _Point | None) -> Settled:
        """Of all that were judged, the one that comes nearest to the budget from within."""
        if not any(each.over <= 0 for each in self._judged) and within is not None:
            self._judge(within.at)
        fitting = [each for each in self._judged if each.over <= 0]
        if not fitting:
            raise RecipeError(self._refusal())
        return max(fitting, key=lambda each: each.over).settled

    def _judge(self, at: float) -> _Judged:
        recipe = with_knob(self._recipe, 2**at, self._unknown)
        plan = resolve(recipe, self._checkpoint)
        told = forecast(plan, self._checkpoint, sample=LARGER * SAMPLE)
        settled = Settled(recipe, 2**at, plan, told)
        self._judged.append(_Judged(settled, told, self._over(told)))
        return self._judged[-1]

    def _over(self, told: Forecast) -> float:
        """By how many octaves what is foretold is above the budget."""
        taken = told.bytes_after if self._budget.kl is None else told.predicted_kl
        if taken is None:
            raise RecipeError(
                "the KL of this recipe cannot be foretold, so it cannot have a budget of KL; "
                "give a share or bytes"
            )
        return math.log2(taken / self._most) if taken else -math.inf

    def _step(self, point: _Point) -> float:
        """Octaves to the knob that should be on the other side: KL goes with the knob's square, and
        an octave is a bit for each entry, or less where most are zero."""
        if not math.isfinite(point.over):
            return math.copysign(2.0, point.over) * self._coarser
        if self._budget.kl is not None:
            octaves = abs(point.over) / 2
        else:
            bits = 8 * self._most * abs(2**point.over - 1)
            octaves = bits / (self._checkpoint.bytes_total / self._checkpoint.dtype.itemsize)
        return math.copysign(min(1.2 * octaves + 0.05, 8.0), point.over) * self._coarser

    def _try(self, at: float) -> _Point:
        recipe = with_knob(self._recipe, 2**at, self._unknown, compensated=False)
        try:
            told = forecast(resolve(recipe, self._checkpoint), self._checkpoint)
        except CodecError:  # steps finer than can be told
            return _Point(at, math.inf * self._coarser)
        self._least = min(self._least, told.bytes_after)
        return _Point(at, self._over(told) - self._allowed)

    def _refusal(self) -> str:
        label = self._budget.label
        if self._budget.kl is not None or not math.isfinite(self._least):
            return (
                f"no knob meets the budget of {label}; give a larger one, or code everything "
                "without loss (preset lossless-whole)"
            )
        return (
            f"no knob meets the budget of {label}: what is not coded by it takes "
            f"{bytes_text(self._least)} at least; give a larger one, or fewer rules beside it"
        )


def _between(one: _Point, other: _Point) -> float:
    """Where the line through both meets the budget, not too near to either; the middle, where one
    of them is no number."""
    first, second = one.weight * one.over, other.weight * other.over
    share = 0.5
    if math.isfinite(first) and math.isfinite(second):
        share = min(max(first / (first - second), 0.02), 0.98)
    return one.at + share * (other.at - one.at)

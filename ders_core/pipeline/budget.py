"""From a budget to the knob that meets it, by samples of every matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Lossless
from ders_core.compute.progress import Progress, quiet
from ders_core.errors import CodecError, RecipeError
from ders_core.files.inputs import unchanged_inputs
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.plan import Plan, resolve
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.sampling import SAMPLE
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.recipe.budget import Budget, codec_of_deltas, codec_of_matrices, names_apart
from ders_core.recipe.rule import MOST_NAMES, USUAL_KINDS
from ders_core.units import bytes_text, number_text

SPARE = 0.004
"""Share of a budget of bytes that is left free: a sample tells bytes within about as much."""

CLOSE = 0.01
"""Octaves: a knob whose bytes or KL are so near to the budget, and within it, is taken."""

TOLD = 0.05
"""Share by which a predicted KL may be above a budget and count as met: predictions from a sample
and from all rows differ by as much."""

AIM = CLOSE / 3
"""How far within the budget."""

LARGER = 8
"""Times the usual sample, of rows and of experts: tables weigh less in it, and experts are not
alike. What is taken is judged by it, with errors made up for; knobs are tried without, which needs
no moments of inputs and far less time."""

MOST_JUDGED = 6
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
    """The recipe with rules in the place of its budget, and with its `base_error`.

    Raises as `settled`.
    """
    if recipe.budget is None:
        return recipe.with_base_error()
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
    unknown = check_budget(recipe, checkpoint)
    if budget.knob is not None:
        chosen = with_knob(recipe, budget.knob, unknown)
        return Settled(chosen, budget.knob, resolve(chosen, checkpoint), None)
    search = _Search(recipe, unknown, checkpoint, budget, progress)
    return search.settled()


def check_budget(recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """Refuse what no search for a knob is needed to refuse; reads headers only. Returns the tensors
    outside the experts that the calibration did not measure. Raises as `settled`."""
    assert recipe.calibration is not None, "a recipe with a budget has one"
    measured = set(Calibration.open(recipe.calibration).others.names)
    unknown = [
        name
        for name, other in checkpoint.others.items()
        if other.kind in USUAL_KINDS and name not in measured
    ]
    tried = with_knob(recipe, FIRST, unknown)
    check_files(tried, checkpoint)
    resolve(tried, checkpoint)
    return unknown


def missed(budget: Budget, bytes_before: int, bytes_after: int, kl: float | None) -> str:
    """By how much a finished run misses its budget, in one sentence; empty if it is met, or if that
    is not known. kl: as it is predicted from all that was encoded."""
    if budget.kl is not None:
        if kl is None or kl <= budget.kl * (1 + TOLD):
            return ""
        return (
            f"the predicted KL is {number_text(kl)} nats a token, above the budget of "
            f"{budget.kl:g}: a sample foretold less, so give a smaller budget to stay within"
        )
    most = budget.bytes if budget.share is None else budget.share * bytes_before
    if most is None or bytes_after <= most:
        return ""
    return (
        f"the weight files take {bytes_text(bytes_after)}, {bytes_text(bytes_after - most)} more "
        f"than the budget of {budget.label}: a sample foretold fewer, so give a smaller budget to "
        "stay within"
    )


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
        base_error=recipe.base_error or ("shared" if stored else None),
        others=(OtherRule(codec=matrices), *apart, *recipe.others),
    )


@dataclass(frozen=True)
class _Point:
    """A knob that was tried. at: its logarithm to base 2. over: by how many octaves it is above
    what the budget allows; negative where it is within. settled: what came of it, if it was judged.
    weight: of `over` in false position."""

    at: float
    over: float
    settled: Settled | None = None
    weight: float = 1.0

    @property
    def meets(self) -> bool:
        return -CLOSE <= self.over <= 0

    def lighter(self, is_again: bool) -> _Point:
        """The point with half the weight, if the other side was found again."""
        return replace(self, weight=self.weight / 2) if is_again else self


class _Search:
    """Looks for the knob that comes nearest to the budget from within: first with small samples, in
    which no error is made up for, then from there with larger ones, as it will be encoded."""

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
        self._least = math.inf  # bytes
        self._slope: float | None = None
        self._coarser = 1 if budget.kl is None else -1  # which way less is taken of the budget
        most = budget.bytes or (budget.share or 0.0) * checkpoint.bytes_total
        self._most = budget.kl if budget.kl is not None else most * (1 - SPARE)

    def settled(self) -> Settled:
        tried = self._near(self._try, math.log2(FIRST), MOST_TRIED)
        judged = self._near(self._judge, tried[-1].at, MOST_JUDGED)
        fitting = [point for point in judged if point.over <= 0 and point.settled is not None]
        if not fitting:
            raise RecipeError(self._refusal())
        found = max(fitting, key=lambda point: point.over).settled
        assert found is not None
        return found

    def _near(self, ask: Callable[[float], _Point], at: float, most: int) -> list[_Point]:
        """The knobs that were asked for, the last of which meets the budget if one does.

        By false position (Illinois) between a knob that is over the budget and one within it; until
        there are both, in steps as long as bits and KL let expect.
        """
        asked = list[_Point]()
        over: _Point | None = None
        within: _Point | None = None
        while len(asked) < most and LEAST <= at <= MOST:
            self._progress(len(asked), most, f"trying knob {number_text(2**at)}")
            point = ask(at)
            asked.append(point)
            if point.meets:
                break
            self._learn(asked)
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
        return asked

    def _judge(self, at: float) -> _Point:
        recipe = with_knob(self._recipe, 2**at, self._unknown)
        plan = resolve(recipe, self._checkpoint)
        try:
            told = forecast(plan, self._checkpoint, sample=LARGER * SAMPLE)
        except CodecError:  # steps finer than can be told
            return _Point(at, math.inf * self._coarser)
        self._least = min(self._least, told.bytes_after)
        return _Point(at, self._over(told), Settled(recipe, 2**at, plan, told))

    def _over(self, told: Forecast) -> float:
        """By how many octaves what is foretold is above the budget."""
        taken = told.bytes_after if self._budget.kl is None else told.predicted_kl
        if taken is None:
            raise RecipeError(
                "the KL of this recipe cannot be foretold, so it cannot have a budget of KL; "
                "give a share or bytes"
            )
        return math.log2(taken / self._most) if taken else -math.inf

    def _learn(self, asked: list[_Point]) -> None:
        """How many octaves of bytes or KL an octave of the knob is."""
        if len(asked) > 1:
            last, before = asked[-1], asked[-2]
            slope = abs(last.over - before.over) / abs(last.at - before.at)
            self._slope = slope if math.isfinite(slope) and slope > 0 else self._slope

    def _step(self, point: _Point) -> float:
        """Octaves to the knob that should be on the other side, or a little further. At first KL is
        taken to go with the knob's square, and an octave to be a bit for each entry."""
        if not math.isfinite(point.over):
            return math.copysign(2.0, point.over) * self._coarser
        if self._slope is not None:
            octaves = 1.05 * abs(point.over) / self._slope + CLOSE
        elif self._budget.kl is not None:
            octaves = 0.6 * abs(point.over) + 0.05
        else:
            bits = 8 * self._most * abs(2**point.over - 1)
            entries = self._checkpoint.bytes_total / self._checkpoint.dtype.itemsize
            octaves = 1.2 * bits / entries + 0.05
        return math.copysign(min(octaves, 8.0), point.over) * self._coarser

    def _try(self, at: float) -> _Point:
        recipe = with_knob(self._recipe, 2**at, self._unknown, compensated=False)
        try:
            told = forecast(resolve(recipe, self._checkpoint), self._checkpoint)
        except CodecError:  # steps finer than can be told
            return _Point(at, math.inf * self._coarser)
        return _Point(at, self._over(told))

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
    """Where the line through both meets the budget from within, not too near to either; the middle,
    where one of them is no number."""
    first, second = (each.weight * (each.over + AIM) for each in (one, other))
    share = 0.5
    if math.isfinite(first) and math.isfinite(second):
        share = min(max(first / (first - second), 0.02), 0.98)
    return one.at + share * (other.at - one.at)

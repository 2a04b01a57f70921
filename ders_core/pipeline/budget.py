"""From a budget to the knob that meets it, by samples of every matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Lossless
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CodecError, RecipeError
from ders_core.files.inputs import unchanged_inputs
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.knob_bytes import COARSEST, FINEST, KnobBytes
from ders_core.pipeline.plan import Plan, resolve
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.sampling import BYTES_ALONE, LARGER, USUAL, Extent
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.recipe.budget import Budget, codec_of_deltas, codec_of_matrices, names_apart
from ders_core.recipe.rule import MOST_NAMES, USUAL_KINDS
from ders_core.units import bytes_text, digits_written, number_text

SPARE = 0.004
"""Share of a budget of bytes that is left free: a sample tells bytes within about as much."""

CLOSE = 0.01
"""Octaves: a knob whose bytes or KL are so near to the budget, and within it, is taken."""

TOLD = 0.05
"""Share by which a KL that is predicted from all rows may be above a budget that a sample met."""

AIM, FIRST_AIM = CLOSE / 3, 0.6 * CLOSE
"""How far within the budget; the first by levels alone, which take rather less than is coded."""

MOST_JUDGED = 6
"""Knobs that are judged by a larger sample, with errors made up for."""

MOST_TRIED = 16
"""Knobs that are tried first for a budget of KL, by a small sample without making up for errors."""

FIRST = 2.0**-16
"""The knob that is looked at first; its unit is √(nats a token)."""

LONGEST = 4.0
"""Times the last step, at most, that a step is where all knobs were on the same side."""

KNOBS_AN_OCTAVE = 1 << 12
"""Knobs that are told apart: sums of logarithms are not the same to their last bit on every
machine, and the knob is to be."""


@dataclass(frozen=True)
class Settled:
    """A recipe whose budget has become rules. plan: of the recipe. told: what a sample foretells;
    None where the budget is a knob, which needs no sample."""

    recipe: Recipe
    knob: float
    plan: Plan
    told: Forecast | None


def settle(recipe: Recipe, checkpoint: Checkpoint, *, progress: Progress = quiet) -> Recipe:
    """The recipe with rules in the place of its budget, and with its `base_error`: those of
    `settled`, but nothing is foretold that the search does not need. Raises as `settled`."""
    budget = recipe.budget
    if budget is None:
        return recipe.with_base_error()
    extent = BYTES_ALONE if budget.kl is None else LARGER
    return _settled(recipe, budget, checkpoint, progress, extent).recipe


def settled(
    recipe: Recipe,
    budget: Budget,
    checkpoint: Checkpoint,
    *,
    progress: Progress = quiet,
    with_lossless: bool = False,
) -> Settled:
    """Find the knob that meets a budget, and write it out as rules.

    The recipe's own rules come last, so they count where they select something. Tensors that the
    calibration did not measure are kept without loss. The same recipe, checkpoint and calibration
    give the same knob. progress counts knobs tried. with_lossless: of what is told, as of
    `forecast`. Raises RecipeError if the budget cannot be met, CheckpointError if the calibration
    lacks what a knob needs.
    """
    return _settled(recipe, budget, checkpoint, progress, LARGER, with_lossless=with_lossless)


@unchanged_inputs()
def _settled(
    recipe: Recipe,
    budget: Budget,
    checkpoint: Checkpoint,
    progress: Progress,
    extent: Extent,
    *,
    with_lossless: bool = False,
) -> Settled:
    """extent: by which knobs are judged."""
    unknown = check_budget(recipe, checkpoint)
    if budget.knob is not None:
        chosen = with_knob(recipe, budget.knob, unknown)
        return Settled(chosen, budget.knob, resolve(chosen, checkpoint), None)
    search = _OfBytes if budget.kl is None else _OfKL
    return search(recipe, unknown, checkpoint, budget, progress, extent, with_lossless).settled()


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
        told = number_text(kl, digits_written(budget.kl))
        return (
            f"the predicted KL is {told} nats a token, above the budget of {budget.label}: a "
            "sample foretold less, so give a smaller budget to stay within"
        )
    most = budget.bytes if budget.share is None else budget.share * bytes_before
    if most is None or bytes_after <= most:
        return ""
    return (
        f"the weight files take {bytes_text(bytes_after)} ({bytes_after:,} bytes), "
        f"{bytes_text(bytes_after - most)} more than the budget of {budget.label}: a sample "
        "foretold fewer, so give a smaller budget to stay within"
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
    what the budget allows; negative where it is within. settled: with what a sample foretells; None
    if its steps are finer than can be told. weight: of `over` in false position."""

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


class _Search(ABC):
    """Looks for the knob that comes nearest to the budget from within: from where `_first` says, by
    samples that are encoded as the output will be."""

    coarser: ClassVar[int]
    """1 if a coarser knob takes less of the budget, −1 if a finer one does."""

    def __init__(
        self,
        recipe: Recipe,
        unknown: Collection[str],
        checkpoint: Checkpoint,
        budget: Budget,
        progress: Progress,
        extent: Extent,
        with_lossless: bool,
    ) -> None:
        self._recipe, self._unknown, self._checkpoint = recipe, unknown, checkpoint
        self._budget, self._meter = budget, Meter(MOST_JUDGED, progress)
        self._extent, self._with_lossless = extent, with_lossless
        self._least = math.inf  # bytes

    @abstractmethod
    def _first(self) -> float:
        """The logarithm of the knob that is judged first."""

    @abstractmethod
    def _over(self, told: Forecast) -> float:
        """By how many octaves what is foretold is above what the budget allows."""

    @abstractmethod
    def _after(self, asked: list[_Point]) -> float:
        """The logarithm of the knob to ask for next, whatever was learnt from those before."""

    def settled(self) -> Settled:
        judged = self._near(self._judge, self._first(), MOST_JUDGED)
        fitting = [point for point in judged if point.over <= 0 and point.settled is not None]
        if not fitting:
            raise RecipeError(self._refusal())
        found = max(fitting, key=lambda point: point.over).settled
        assert found is not None
        return found

    def _near(self, ask: Callable[[float], _Point], at: float, most: int) -> list[_Point]:
        """The knobs that were asked for, the last of which meets the budget if one does.

        By false position (Illinois) between a knob that is over the budget and one within it; until
        there are both, as `_after` says.
        """
        asked = list[_Point]()
        over: _Point | None = None
        within: _Point | None = None
        while len(asked) < most and FINEST <= at <= COARSEST:
            self._meter.total = most
            self._meter.at(len(asked), f"trying knob {number_text(2**at)}")
            point = ask(at)
            asked.append(point)
            if point.meets:
                break
            if point.over > 0:
                within = within and within.lighter(over is not None)
                over = point
            else:
                over = over and over.lighter(within is not None)
                within = point
            after = self._after(asked)
            at = after if over is None or within is None else self._between(over, within, after)
        return asked

    def _between(self, over: _Point, within: _Point, after: float) -> float:
        """The logarithm of the knob to ask for between two. after: as of `_after`."""
        return _on_the_line(over, within)

    def _judge(self, at: float) -> _Point:
        recipe = with_knob(self._recipe, 2**at, self._unknown)
        point = self._asked(recipe, at, self._extent, with_lossless=self._with_lossless)
        if point.settled is not None and point.settled.told is not None:
            self._least = min(self._least, point.settled.told.bytes_after)
        return point

    def _asked(
        self, recipe: Recipe, at: float, extent: Extent, *, with_lossless: bool = False
    ) -> _Point:
        """What a sample foretells of a knob."""
        plan = resolve(recipe, self._checkpoint)
        try:
            told = forecast(plan, self._checkpoint, extent=extent, with_lossless=with_lossless)
        except CodecError:  # steps finer than can be told
            return _Point(at, math.inf * self.coarser)
        return _Point(at, self._over(told), Settled(recipe, 2**at, plan, told))

    def _refusal(self) -> str:
        label = self._budget.label
        if self._budget.kl is not None or not math.isfinite(self._least):
            return (
                f"no knob meets the budget of {label}; give a larger one, fewer rules beside it, "
                "or code everything without loss (preset lossless-whole)"
            )
        return (
            f"no knob that was tried meets the budget of {label}: with each the output takes "
            f"{bytes_text(self._least)} or more; give a larger one, or fewer rules beside it"
        )


class _OfBytes(_Search):
    """Of a share or bytes. Counted levels tell how bytes go with the knob; what an encoded sample
    takes tells how many they are."""

    coarser: ClassVar[int] = 1

    def _first(self) -> float:
        """By counted levels alone."""
        at = math.log2(FIRST)
        plain, doubled = (
            resolve(with_knob(self._recipe, knob, self._unknown), self._checkpoint)
            for knob in (FIRST, 2 * FIRST)
        )
        self._bytes = KnobBytes(plain, doubled, at, self._checkpoint, self._meter)
        return self._aimed(FIRST_AIM)

    @property
    def _most(self) -> float:
        share = (self._budget.share or 0.0) * self._checkpoint.bytes_total
        return (self._budget.bytes or share) * (1 - SPARE)

    def _over(self, told: Forecast) -> float:
        return math.log2(told.bytes_after / self._most)

    def _after(self, asked: list[_Point]) -> float:
        at, settled = asked[-1].at, asked[-1].settled
        if settled is None or settled.told is None:
            return self._bytes.finest if self._bytes.finest > at else at + 1
        self._bytes.correct(at, settled.told.bytes_after)
        after = self._aimed(AIM)
        return self._farther(asked, after) if after != at else math.inf  # no other one is nearer

    def _farther(self, asked: list[_Point], after: float) -> float:
        """Where all knobs were on one side: as far as the line through the last two tells, if
        `after` is less far. Levels are too steep where bytes follow the knob less than they do."""
        if len(asked) < 2 or len({point.over > 0 for point in asked}) > 1:
            return after
        before, point = asked[-2:]
        gained = before.over - point.over
        steps = (point.over + AIM) / gained if gained * point.over > 0 else LONGEST
        line = point.at + min(steps, LONGEST) * (point.at - before.at)
        farther = max(after, line) if point.over > 0 else min(after, line)
        return _apart(min(max(farther, FINEST), COARSEST))

    def _between(self, over: _Point, within: _Point, after: float) -> float:
        """As levels tell, if they do not contradict what was seen."""
        low, high = sorted((over.at, within.at))
        return after if low < after < high else _on_the_line(over, within)

    def _aimed(self, octaves: float) -> float:
        return _apart(self._bytes.within(self._most * 2**-octaves))


class _OfKL(_Search):
    """Of KL, which no levels tell: it takes errors."""

    coarser: ClassVar[int] = -1
    _slope: float | None = None
    """How many octaves of KL an octave of the knob is."""

    def _first(self) -> float:
        """By small samples."""
        return self._near(self._try, math.log2(FIRST), MOST_TRIED)[-1].at

    def _try(self, at: float) -> _Point:
        recipe = with_knob(self._recipe, 2**at, self._unknown, compensated=False)
        return self._asked(recipe, at, USUAL)

    def _over(self, told: Forecast) -> float:
        assert self._budget.kl is not None
        if told.predicted_kl is None:
            raise RecipeError(
                "the KL of this recipe cannot be foretold, so it cannot have a budget of KL; "
                "give a share or bytes"
            )
        return math.log2(told.predicted_kl / self._budget.kl) if told.predicted_kl else -math.inf

    def _after(self, asked: list[_Point]) -> float:
        """By as many octaves as those before let expect, or a little further. At first KL is taken
        to go with a little less than the knob's square."""
        point = asked[-1]
        if len(asked) > 1:
            slope = abs(point.over - asked[-2].over) / abs(point.at - asked[-2].at)
            self._slope = slope if math.isfinite(slope) and slope > 0 else self._slope
        if not math.isfinite(point.over):
            return point.at - math.copysign(2.0, point.over)
        octaves = 0.6 * abs(point.over) + 0.05
        if self._slope is not None:
            octaves = 1.05 * abs(point.over) / self._slope + CLOSE
        return point.at - math.copysign(min(octaves, 8.0), point.over)


def _apart(at: float) -> float:
    """The nearest of the knobs that are told apart."""
    return round(KNOBS_AN_OCTAVE * at) / KNOBS_AN_OCTAVE


def _on_the_line(one: _Point, other: _Point) -> float:
    """Where the line through both meets the budget from within, not too near to either; the middle,
    where one of them is no number."""
    first, second = (each.weight * (each.over + AIM) for each in (one, other))
    share = 0.5
    if math.isfinite(first) and math.isfinite(second):
        share = min(max(first / (first - second), 0.02), 0.98)
    return one.at + share * (other.at - one.at)

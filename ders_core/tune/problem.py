"""Scores as choices with numbers: what can be taken of each, its size, and what it loses.

A choice is a unit; or a group with its base, since deltas that lose nothing need a base that comes
back bit for bit, and a group that stays as it is needs none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ders_core.codecs import Keep
from ders_core.errors import RecipeError
from ders_core.later import np
from ders_core.tune.bounds import Measure
from ders_core.tune.constraints import Constraint, allowed, check_selecting
from ders_core.tune.coupling import Key, Loss, Slopes
from ders_core.tune.finer import with_finer
from ders_core.tune.knapsack import Options
from ders_core.tune.scores import Candidate, Scores, UnitScores

MOST_PAIRS = 1000
"""Codecs of deltas and base of a group are tried in all pairs, if there are no more than these;
else those pairs that no mixture of others is better than."""

TIE = 1e-9
"""By what a byte counts that a measure does not count: of equals the smaller is taken."""

NONE = -1
"""In the place of a candidate: there is no base."""


@dataclass(frozen=True)
class Table:
    """The candidates of a unit. number: of the unit. sizes: in the measure. column: of what is
    missing of deltas, else None. All arrays are float64 `[candidates]`."""

    number: int
    scored: UnitScores
    candidates: tuple[Candidate, ...]
    column: int | None
    sizes: np.ndarray
    noise: np.ndarray
    output: np.ndarray
    router: np.ndarray
    missing: np.ndarray

    @classmethod
    def of(
        cls, scores: Scores, number: int, candidates: Sequence[Candidate], factor: float
    ) -> Table:
        """factor: of a byte in the measure."""
        table = np.array(
            [[c.nbytes, c.noise, c.output, c.router, 1 - c.gain] for c in candidates], float
        )
        table = table.reshape(-1, 5).T
        table[0] *= max(factor, TIE)
        column = scores.column.get(number)
        return cls(number, scores.units[number], tuple(candidates), column, *table)

    def losses(self, slopes: Slopes) -> np.ndarray:
        """What each adds to the KL near a point, `[candidates]`."""
        losses: np.ndarray = self.noise + slopes.router[self.scored.before] * self.router
        group = self.scored.unit.group
        if group is None:
            return losses
        losses += (slopes.noise[group] - 1) * self.noise
        losses += slopes.output.get(group, 0.0) * self.output
        if self.column is None:
            return losses
        losses += slopes.missing[self.column] * self.missing
        losses += slopes.square[self.column] / 2 * self.missing**2
        return losses


class Choice(ABC):
    """One choice of the knapsack."""

    tables: tuple[Table, ...]

    @abstractmethod
    def options(self, slopes: Slopes) -> tuple[Options, np.ndarray]:
        """The options near a point, and of each the candidates of its tables: int `[n, tables]`."""

    def with_pick(self, slopes: Slopes, pick: np.ndarray) -> tuple[Options, np.ndarray]:
        """The same, and behind them what was picked, by the candidates of its tables: of many pairs
        `options` has not all."""
        options, pairs = self.options(slopes)
        there = [(t, n) for t, n in zip(self.tables, pick.tolist(), strict=True) if n != NONE]
        size = sum(float(table.sizes[number]) for table, number in there)
        loss = sum(float(table.losses(slopes)[number]) for table, number in there)
        return (
            Options(np.append(options.sizes, size), np.append(options.losses, loss)),
            np.concatenate([pairs, pick[None]]),
        )


@dataclass(frozen=True)
class Alone(Choice):
    """A unit that is chosen by itself."""

    tables: tuple[Table, ...]

    def options(self, slopes: Slopes) -> tuple[Options, np.ndarray]:
        (table,) = self.tables
        return Options(table.sizes, table.losses(slopes)), np.arange(len(table.sizes))[:, None]


@dataclass(frozen=True)
class WithBase(Choice):
    """The deltas of a group, and its base. lossy: numbers of the deltas that lose something, beside
    which any base may be. exact: other pairs."""

    tables: tuple[Table, ...]
    lossy: np.ndarray
    exact: np.ndarray

    @classmethod
    def of(cls, deltas: Table, base: Table) -> WithBase:
        """The base of a pair has no candidate where the group stays as it is."""
        lossy, exact = list[int](), list[tuple[int, int]]()
        bases = [n for n, candidate in enumerate(base.candidates) if candidate.codec.lossless]
        for number, candidate in enumerate(deltas.candidates):
            if isinstance(candidate.codec, Keep):
                exact.append((number, NONE))
            elif candidate.codec.lossless:
                exact += [(number, other) for other in bases]
            else:
                lossy.append(number)
        return cls(
            (deltas, base),
            np.array(lossy, int) if len(base.candidates) else np.array([], int),
            np.array(exact, int).reshape(-1, 2),
        )

    @property
    def is_empty(self) -> bool:
        return not len(self.lossy) and not len(self.exact)

    def options(self, slopes: Slopes) -> tuple[Options, np.ndarray]:
        deltas, base = self.tables
        losses = deltas.losses(slopes), base.losses(slopes)
        pairs = self.exact
        if len(self.lossy):
            first = Options(deltas.sizes[self.lossy], losses[0][self.lossy])
            second = Options(base.sizes, losses[1])
            found = _pairs(first, second)
            found[:, 0] = self.lossy[found[:, 0]]
            pairs = np.concatenate([found, pairs])
        # a base that is not there takes and loses nothing: index NONE finds the zero at the end
        sizes, of_base = (np.append(each, 0.0) for each in (base.sizes, losses[1]))
        return (
            Options(
                deltas.sizes[pairs[:, 0]] + sizes[pairs[:, 1]],
                losses[0][pairs[:, 0]] + of_base[pairs[:, 1]],
            ),
            pairs,
        )


def _pairs(first: Options, second: Options) -> np.ndarray:
    """int `[n, 2]`: all pairs; of many, those on the convex hull of all."""
    counts = len(first.sizes), len(second.sizes)
    if counts[0] * counts[1] <= MOST_PAIRS:
        return np.stack([each.ravel() for each in np.indices(counts)], 1)
    hulls = [hull_of(first), hull_of(second)]
    steps = []
    for axis, (options, hull) in enumerate(zip((first, second), hulls, strict=True)):
        slopes = np.diff(options.losses[hull]) / np.diff(options.sizes[hull])
        steps += [(slope, axis) for slope in slopes.tolist()]
    places = [(0, 0)]
    for _, axis in sorted(steps):
        place = places[-1]
        places.append((place[0] + (axis == 0), place[1] + (axis == 1)))
    return np.array([[hulls[0][one], hulls[1][other]] for one, other in places])


def hull_of(options: Options) -> np.ndarray:
    """The options on the lower convex hull, from the smallest to the one that loses least."""
    sizes, losses = options.sizes, options.losses
    order = np.lexsort((losses, sizes))
    below = np.ones(len(order), bool)
    below[1:] = losses[order][1:] < np.minimum.accumulate(losses[order])[:-1]
    hull = list[int]()
    for number in order[below].tolist():
        while len(hull) > 1:
            first, last = hull[-2], hull[-1]
            rise = (losses[last] - losses[first]) * (sizes[number] - sizes[first])
            if rise < (losses[number] - losses[first]) * (sizes[last] - sizes[first]):
                break
            hull.pop()
        hull.append(number)
    return np.array(hull)


@dataclass(frozen=True)
class Problem:
    """size_beside: what everything takes that has no unit, in the measure."""

    scores: Scores
    choices: tuple[Choice, ...]
    size_beside: float

    @classmethod
    def of(
        cls,
        scores: Scores,
        measure: Measure,
        constraints: Sequence[Constraint],
        *,
        friendly: bool,
    ) -> Problem:
        """Raises RecipeError if the constraints leave a unit nothing, or one is about none."""
        check_selecting(constraints, (scored.unit for scored in scores.units))
        tables = list[Table]()
        for number, scored in enumerate(scores.units):
            candidates = with_finer(allowed(scored, constraints, friendly=friendly))
            factor = _factor(scores, scored, measure)
            tables.append(Table.of(scores, number, candidates, factor))
        is_of_group = not scores.per_expert
        bases = {t.scored.unit.group: t for t in tables if t.scored.unit.part == "base"}
        choices = list[Choice]()
        for table in tables:
            unit = table.scored.unit
            if unit.part == "deltas" and is_of_group:
                pair = WithBase.of(table, bases[unit.group])
                if pair.is_empty:
                    raise _nothing_left(table)
                choices.append(pair)
            elif not (unit.part == "base" and is_of_group):
                if not table.candidates:
                    raise _nothing_left(table)
                choices.append(Alone((table,)))
        beside = 0.0 if measure == "bits" else float(scores.bytes_beside)
        return cls(scores, tuple(choices), beside)

    @property
    def candidate_count(self) -> int:
        """Of all units."""
        return sum(len(table.sizes) for choice in self.choices for table in choice.tables)

    def candidates(self, picks: Sequence[np.ndarray]) -> list[Candidate | None]:
        """Of each unit, from the candidates that were picked of each choice's tables: int64
        `[tables]` each."""
        candidates = list[Candidate | None]([None] * len(self.scores.units))
        for table, number in self._taken(picks):
            candidates[table.number] = table.candidates[number]
        return candidates

    def size_of(self, picks: Sequence[np.ndarray]) -> float:
        """What everything takes, in the measure. picks: as of `candidates`."""
        return self.size_beside + sum(float(table.sizes[n]) for table, n in self._taken(picks))

    def loss_near(self, slopes: Slopes, picks: Sequence[np.ndarray]) -> float:
        """The sum of what is lost near a point. picks: as of `candidates`."""
        return sum(float(table.losses(slopes)[n]) for table, n in self._taken(picks))

    def _taken(self, picks: Sequence[np.ndarray]) -> Iterator[tuple[Table, int]]:
        """The tables of which something was picked, and the candidate's number."""
        for choice, numbers in zip(self.choices, picks, strict=True):
            for table, number in zip(choice.tables, numbers.tolist(), strict=True):
                if number != NONE:
                    yield table, number

    def loss(self, candidates: Sequence[Candidate | None]) -> Loss:
        """What units lose together that have these candidates."""
        noise, output = dict[Key, float](), dict[Key, float]()
        router, others = dict[int, float](), 0.0
        missing = np.zeros(len(self.scores.column))
        for number, (scored, candidate) in enumerate(
            zip(self.scores.units, candidates, strict=True)
        ):
            lost = candidate or _NOTHING
            group = scored.unit.group
            if group is None:
                others += lost.noise
            else:
                noise[group] = noise.get(group, 0.0) + lost.noise
                output[group] = output.get(group, 0.0) + lost.output
            router[scored.before] = router.get(scored.before, 0.0) + lost.router
            if number in self.scores.column:
                missing[self.scores.column[number]] = 1 - lost.gain
        return Loss(noise, output, router, others, missing)


_NOTHING = Candidate(Keep(), 0, True)


def _factor(scores: Scores, scored: UnitScores, measure: Measure) -> float:
    if measure == "read":
        return scored.read
    if measure == "bits":
        return 0.0 if scored.unit.part == "tensor" else 8 / scores.expert_weights
    return 1.0


def _nothing_left(table: Table) -> RecipeError:
    return RecipeError(
        f"the constraints leave no codec for {table.scored.unit.label}; allow more forms, or ask "
        "for fewer bits"
    )

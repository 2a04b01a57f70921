"""The last improvements of an allocation, by what the whole model loses and not by a sum.

Near a point, losses that meet others are taken as a sum: what is best by that sum may not be by the
whole. So changes of one or two choices are told by the sum, and the most promising ones by the
whole; the best is made, as long as there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ders_core.later import np
from ders_core.tune.coupling import Coupling, Loss
from ders_core.tune.knapsack import Options
from ders_core.tune.problem import Problem

PROMISING = 16
"""Changes that are weighed by the whole, at most, before one is made."""

CHANGES = 40
"""That are made, at most."""

LEAST = 1e-4
"""A change that makes the KL smaller by less than this share of it is not made."""


@dataclass(frozen=True)
class Picked:
    """picks: of each choice, the candidates of its tables. kl: nats a token. loss: of all units."""

    picks: list[np.ndarray]
    kl: float
    loss: Loss

    @classmethod
    def of(cls, problem: Problem, coupling: Coupling, picks: list[np.ndarray]) -> Picked:
        loss = problem.loss(problem.candidates(picks))
        return cls(picks, coupling.kl(loss), loss)


@dataclass(frozen=True)
class _Moves:
    """Changes of one choice, of all choices. choice, option: int64 `[n]`. more, saved: what they
    take more, and what they lose less by the sum."""

    choice: np.ndarray
    option: np.ndarray
    more: np.ndarray
    saved: np.ndarray

    @classmethod
    def of(cls, options: Sequence[Options]) -> _Moves:
        """From the last option of each choice."""
        counts = [len(each.sizes) for each in options]
        places = np.cumsum(counts) - 1
        sizes, losses = (
            np.concatenate([getattr(each, name) for each in options])
            for name in ("sizes", "losses")
        )
        choice = np.repeat(np.arange(len(options)), counts)
        more, saved = sizes - sizes[places][choice], losses[places][choice] - losses
        option = np.concatenate([np.arange(count) for count in counts])
        moves = (more != 0) | (saved != 0)
        return cls(choice[moves], option[moves], more[moves], saved[moves])

    def promising(self, room: float) -> Iterator[list[int]]:
        """Single ones and pairs that fit, by their numbers, those that save most first."""
        order = np.argsort(self.more, kind="stable")
        best, other = best_two(self.choice[order], self.saved[order])
        fits = np.searchsorted(self.more[order], room - self.more, side="right") - 1
        partner = np.where(fits >= 0, best[fits], -1)
        is_itself = self.choice[order][partner] == self.choice
        partner = np.where((partner >= 0) & is_itself, other[fits], partner)
        paired = np.where(partner >= 0, self.saved + self.saved[order][partner], -np.inf)
        alone = np.where(self.more <= room, self.saved, -np.inf)
        seen = set[tuple[int, ...]]()
        for number in np.argsort(-np.maximum(paired, alone), kind="stable").tolist():
            pair = [number]
            if paired[number] > alone[number]:
                pair = sorted((number, int(order[partner[number]])))
            if max(paired[number], alone[number]) > -np.inf and tuple(pair) not in seen:
                seen.add(tuple(pair))
                yield pair


def best_two(choices: np.ndarray, saved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the moves up to each one, which saves most, and which does of another choice than that
    one's: int64 `[n]` each, −1 where there is none."""
    best = _largest(saved)
    before = np.roll(best, 1)
    is_overtaken = choices[best] != choices[before]
    is_overtaken[:1] = False
    # what is overtaken saves as much as all before, and is of another choice
    rival = np.where(choices != choices[best], np.arange(len(saved)), -1)
    rival = np.where(is_overtaken, before, rival)
    return best, rival[_largest(np.where(rival >= 0, saved[rival], -np.inf))]


def _largest(values: np.ndarray) -> np.ndarray:
    """The place of the largest value up to each one, of equals the last: int64 `[n]`."""
    is_largest = values >= np.maximum.accumulate(values)
    return np.maximum.accumulate(np.where(is_largest, np.arange(len(values)), 0))


def refined(problem: Problem, coupling: Coupling, start: Picked, limit: float) -> Picked:
    """An allocation that loses no more. limit: of all choices' sizes, to which `start` keeps."""
    best = start
    for _ in range(CHANGES):
        better = _changed(problem, coupling, best, limit)
        if better is None:
            break
        best = better
    return best


def _changed(problem: Problem, coupling: Coupling, start: Picked, limit: float) -> Picked | None:
    """After the change of the promising ones that is best; None if none is worth it."""
    slopes = coupling.slopes(start.loss)
    tables = [
        choice.with_pick(slopes, pick)
        for choice, pick in zip(problem.choices, start.picks, strict=True)
    ]
    options = [each for each, _ in tables]
    moves = _Moves.of(options)
    room = limit - float(sum(each.sizes[-1] for each in options))
    best: Picked | None = None
    for numbers in islice(moves.promising(room), PROMISING):
        picks = list(start.picks)
        for number in numbers:
            choice = int(moves.choice[number])
            picks[choice] = tables[choice][1][moves.option[number]]
        tried = Picked.of(problem, coupling, picks)
        if tried.kl < (best or start).kl * (1 if best else 1 - LEAST):
            best = tried
    return best

"""One option of each choice, so that sizes stay within a limit and the sum of losses is least.

The multiple-choice knapsack problem (Sinha and Zoltners 1979). Its relaxation, in which options may
be mixed, is solved exactly by taking the steps along all lower convex hulls in the order of what a
byte saves; it bounds what any choice can reach. A choice is made of the steps that fit, and then
improved by a search over what the bound leaves open: dynamic programming over Pareto-best states,
exact as long as there are no more than `MOST_STATES` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.later import np

MOST_STATES = 4000
CLOSE = 1e-5
"""A choice whose loss is within this share of the bound is not searched for improvements."""


@dataclass(frozen=True)
class Options:
    """One choice. sizes, losses: float64 `[n]`, at least one, finite."""

    sizes: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Solution:
    """chosen: the number of the option of each choice. loss, size: their sums. bound: a loss that
    no choice within the limit is below. is_exact: whether `loss` is known to be the least."""

    chosen: np.ndarray
    size: float
    loss: float
    bound: float
    is_exact: bool

    @property
    def gap(self) -> float:
        """How far the loss is above the bound, as a share of it; 0 where nothing is lost."""
        return (self.loss - self.bound) / self.bound if self.bound > 0 else 0.0


def least_size(choices: Sequence[Options]) -> float:
    """The least that one option of each choice takes."""
    return float(sum(options.sizes.min() for options in choices))


def least_loss(choices: Sequence[Options], limit: float) -> Solution | None:
    """The best found; None if not even the smallest options fit."""
    hulls = [hull_of(options) for options in choices]
    steps = _Steps.of(choices, hulls)
    if steps.start_size > limit:
        return None
    chosen, bound, price = steps.relaxed(limit)
    found = _of(choices, chosen, bound, False)
    if found.loss - bound <= CLOSE * abs(bound):
        return _of(choices, chosen, bound, found.loss <= bound)
    return _searched(choices, found, limit, price)


def _of(choices: Sequence[Options], chosen: np.ndarray, bound: float, is_exact: bool) -> Solution:
    pairs = list(zip(choices, chosen.tolist(), strict=True))
    size = float(sum(options.sizes[number] for options, number in pairs))
    loss = float(sum(options.losses[number] for options, number in pairs))
    return Solution(chosen, size, loss, bound, is_exact)


def hull_of(options: Options) -> np.ndarray:
    """The options on the lower convex hull, from the smallest to the one that loses least."""
    order = np.lexsort((options.losses, options.sizes))
    losses = options.losses[order]
    below = np.ones(len(order), bool)
    below[1:] = losses[1:] < np.minimum.accumulate(losses)[:-1]
    hull = list[int]()
    sizes, losses_all = options.sizes, options.losses
    for number in order[below].tolist():
        while len(hull) > 1:
            first, last = hull[-2], hull[-1]
            rise = (losses_all[last] - losses_all[first]) * (sizes[number] - sizes[first])
            if rise < (losses_all[number] - losses_all[first]) * (sizes[last] - sizes[first]):
                break
            hull.pop()
        hull.append(number)
    return np.array(hull)


@dataclass(frozen=True)
class _Steps:
    """Steps from one option on a hull to the next, those first that save most for their size.
    choice, target: whose, and to which option."""

    start: np.ndarray
    start_size: float
    start_loss: float
    choice: np.ndarray
    target: np.ndarray
    sizes: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, choices: Sequence[Options], hulls: Sequence[np.ndarray]) -> _Steps:
        start = np.array([hull[0] for hull in hulls])
        choice = np.concatenate(
            [np.full(len(hull) - 1, number) for number, hull in enumerate(hulls)]
        )
        target = np.concatenate([hull[1:] for hull in hulls]).astype(int)
        pairs = list(zip(choices, hulls, strict=True))
        sizes = np.concatenate([np.diff(options.sizes[hull]) for options, hull in pairs])
        losses = np.concatenate([np.diff(options.losses[hull]) for options, hull in pairs])
        order = np.argsort(losses / sizes, kind="stable")  # of one choice they are in order already
        firsts = list(zip(choices, start.tolist(), strict=True))
        return cls(
            start,
            float(sum(options.sizes[first] for options, first in firsts)),
            float(sum(options.losses[first] for options, first in firsts)),
            choice[order],
            target[order],
            sizes[order],
            losses[order],
        )

    def relaxed(self, limit: float) -> tuple[np.ndarray, float, float]:
        """What fits of the steps, the bound, and what a unit of size saves where it ends."""
        chosen = self.start.copy()
        room = limit - self.start_size
        taken = np.cumsum(self.sizes)
        fits = int(np.searchsorted(taken, room, side="right"))
        chosen[self.choice[:fits]] = self.target[:fits]  # the last one of a choice counts
        bound = self.start_loss + float(self.losses[:fits].sum())
        if fits == len(self.sizes):
            return chosen, bound, 0.0
        room -= float(taken[fits - 1]) if fits else 0.0
        price = float(-self.losses[fits] / self.sizes[fits])
        bound -= price * room
        stopped = set[int]()
        for step in range(fits, len(self.sizes)):
            choice = int(self.choice[step])
            if choice in stopped:
                continue
            if self.sizes[step] <= room:
                chosen[choice] = self.target[step]
                room -= float(self.sizes[step])
            else:
                stopped.add(choice)
        return chosen, bound, price


def _searched(choices: Sequence[Options], found: Solution, limit: float, price: float) -> Solution:
    """The best of what can be better than `found`: an option whose loss, with its size at that
    price, is more above the least of its choice than `found` is above the bound is in none."""
    reduced = [options.losses + price * options.sizes for options in choices]
    least = [float(each.min()) for each in reduced]
    room = found.loss - found.bound
    open_ = [
        np.flatnonzero(each - low <= room + 1e-12 * abs(low))
        for each, low in zip(reduced, least, strict=True)
    ]
    states = _States.none()
    rest_size = sum(
        float(options.sizes[numbers].min()) for options, numbers in zip(choices, open_, strict=True)
    )
    rest_least = sum(least)
    is_exact = True
    trail = list[_States]()
    for options, numbers, low in zip(choices, open_, least, strict=True):
        rest_size -= float(options.sizes[numbers].min())
        rest_least -= low
        states = states.with_choice(options, numbers)
        bounds = states.losses + price * states.sizes + rest_least - price * limit
        keep = (states.sizes + rest_size <= limit) & (bounds <= found.loss)
        states, bounds = states.of(keep), bounds[keep]
        best = states.best_of_sizes()
        states, bounds = states.of(best), bounds[best]
        if len(states.sizes) > MOST_STATES:
            is_exact = False
            lowest = np.argpartition(bounds, MOST_STATES)[:MOST_STATES]
            states = states.of(np.sort(lowest))
        trail.append(states)
        if not len(states.sizes):
            return Solution(found.chosen, found.size, found.loss, found.bound, is_exact)
    last = int(states.losses.argmin())
    if not states.losses[last] < found.loss:
        return Solution(found.chosen, found.size, found.loss, found.bound, is_exact)
    chosen = np.empty(len(choices), int)
    for number in reversed(range(len(choices))):
        chosen[number] = trail[number].option[last]
        last = int(trail[number].before[last])
    return _of(choices, chosen, found.bound, is_exact)


@dataclass(frozen=True)
class _States:
    """What the first choices can come to. option: of the last of them. before: the number of the
    state before it."""

    sizes: np.ndarray
    losses: np.ndarray
    option: np.ndarray
    before: np.ndarray

    @classmethod
    def none(cls) -> _States:
        return cls(np.zeros(1), np.zeros(1), np.zeros(1, int), np.zeros(1, int))

    def with_choice(self, options: Options, numbers: np.ndarray) -> _States:
        count = len(self.sizes)
        return _States(
            (self.sizes[:, None] + options.sizes[numbers]).ravel(),
            (self.losses[:, None] + options.losses[numbers]).ravel(),
            np.tile(numbers, count),
            np.repeat(np.arange(count), len(numbers)),
        )

    def of(self, some: np.ndarray) -> _States:
        return _States(self.sizes[some], self.losses[some], self.option[some], self.before[some])

    def best_of_sizes(self) -> np.ndarray:
        """Those that lose less than all that are as small."""
        order = np.lexsort((self.losses, self.sizes))
        losses = self.losses[order]
        better = np.ones(len(order), bool)
        better[1:] = losses[1:] < np.minimum.accumulate(losses)[:-1]
        return order[better]

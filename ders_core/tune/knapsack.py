"""One option of each choice, so that sizes stay within a limit and the sum of losses is least.

The multiple-choice knapsack problem (Sinha and Zoltners 1979). With a price for size each choice is
made alone; the price at which sizes meet the limit gives a bound that no choice is below
(Everett 1963), which is that of mixtures of options. What is left of the limit is filled with the
moves that save most, and then dynamic programming over Pareto-best states searches what the bound
leaves open: exact as long as there are no more than `MOST_STATES` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.later import np

MOST_STATES = 2000

CLOSE = 1e-4
"""A choice whose loss is within this share of the bound is not searched for improvements."""

HALVINGS = 64
"""Of the price's logarithm, at most."""

LEAST_PRICE, MOST_PRICE = 1e-40, 1e40

MOST_MOVES = 1000


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
        return max(self.loss - self.bound, 0.0) / self.bound if self.bound > 0 else 0.0


def least_size(choices: Sequence[Options]) -> float:
    """The least that one option of each choice takes."""
    return float(sum(options.sizes.min() for options in choices))


def least_loss(choices: Sequence[Options], limit: float) -> Solution | None:
    """The best found; None if not even the smallest options fit."""
    priced = _priced(choices, limit)
    if priced is None:
        return None
    found, price = priced
    if found.loss - found.bound <= CLOSE * abs(found.bound):
        return found
    return _searched(choices, found, limit, price)


def nearly_least_loss(choices: Sequence[Options], limit: float) -> Solution | None:
    """By prices and moves alone, a hundredth of the work; None as of `least_loss`."""
    priced = _priced(choices, limit)
    return priced and priced[0]


def _priced(choices: Sequence[Options], limit: float) -> tuple[Solution, float] | None:
    """And the price of size that gave the best bound."""
    table = _Table.of(choices)
    smallest = table.sizes.argmin(1)
    if table.size_of(smallest) > limit:
        return None
    chosen, bound, price = table.priced(limit, smallest)
    chosen = table.filled(chosen, limit)
    loss = table.loss_of(chosen)
    return Solution(chosen, table.size_of(chosen), loss, bound, loss <= bound), price


@dataclass(frozen=True)
class _Table:
    """All options: `[choices, most options]`, infinite where a choice has fewer."""

    sizes: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, choices: Sequence[Options]) -> _Table:
        shape = len(choices), max(len(options.sizes) for options in choices)
        sizes, losses = np.full(shape, np.inf), np.full(shape, np.inf)
        for number, options in enumerate(choices):
            sizes[number, : len(options.sizes)] = options.sizes
            losses[number, : len(options.losses)] = options.losses
        return cls(sizes, losses)

    def size_of(self, chosen: np.ndarray) -> float:
        return float(self._of(self.sizes, chosen).sum())

    def loss_of(self, chosen: np.ndarray) -> float:
        return float(self._of(self.losses, chosen).sum())

    def _of(self, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        picked: np.ndarray = values[np.arange(len(chosen)), chosen]
        return picked

    def priced(self, limit: float, smallest: np.ndarray) -> tuple[np.ndarray, float, float]:
        """What the least price gives at which it fits, the best bound, and its price. smallest: the
        choice that takes least, which fits."""
        free = self._at(0.0)
        bound, best_price = self.loss_of(free), 0.0
        if self.size_of(free) <= limit:
            return free, bound, best_price
        chosen, low, high = smallest, np.log(LEAST_PRICE), np.log(MOST_PRICE)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            price = float(np.exp(middle))
            tried = self._at(price)
            size = self.size_of(tried)
            told = self.loss_of(tried) + price * (size - limit)
            if told > bound:
                bound, best_price = told, price
            if size <= limit:
                chosen, high = tried, middle
            else:
                low = middle
        return chosen, bound, best_price

    def _at(self, price: float) -> np.ndarray:
        """The best option of each choice where size has a price."""
        best: np.ndarray = (self.losses + price * self.sizes if price else self.losses).argmin(1)
        return best

    def filled(self, chosen: np.ndarray, limit: float) -> np.ndarray:
        """After moves of single choices, each the one that saves most of those that fit."""
        chosen = chosen.copy()
        room = limit - self.size_of(chosen)
        for _ in range(MOST_MOVES):
            more = self.sizes - self._of(self.sizes, chosen)[:, None]
            saved = self._of(self.losses, chosen)[:, None] - self.losses
            saved = np.where(more <= room, saved, 0.0)
            best = int(saved.argmax())
            if not saved.flat[best] > 0:
                break
            choice, option = divmod(best, saved.shape[1])
            room -= float(more[choice, option])
            chosen[choice] = option
        return chosen


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
    smallest = [
        float(options.sizes[numbers].min()) for options, numbers in zip(choices, open_, strict=True)
    ]
    states, rest_size, rest_least = _States.none(), sum(smallest), sum(least)
    is_exact, trail = True, list[_States]()
    for number, (options, numbers) in enumerate(zip(choices, open_, strict=True)):
        rest_size -= smallest[number]
        rest_least -= least[number]
        states = states.with_choice(options, numbers)
        if len(numbers) > 1:
            bounds = states.losses + price * (states.sizes - limit) + rest_least
            fits = states.sizes + rest_size <= limit * (1 + 1e-12)
            states = states.of(fits & (bounds <= found.loss)).best_of_sizes()
        if len(states.sizes) > MOST_STATES:
            is_exact = False
            bounds = states.losses + price * states.sizes
            lowest = np.argpartition(bounds, MOST_STATES)[:MOST_STATES]
            states = states.of(np.sort(lowest))
        trail.append(states)
    fits = states.sizes <= limit
    if not (fits.any() and states.losses[fits].min() < found.loss):
        return Solution(found.chosen, found.size, found.loss, found.bound, is_exact)
    last = int(np.where(fits, states.losses, np.inf).argmin())
    size, loss = float(states.sizes[last]), float(states.losses[last])
    chosen = np.empty(len(choices), int)
    for number in reversed(range(len(choices))):
        chosen[number] = trail[number].option[last]
        last = int(trail[number].before[last])
    return Solution(chosen, size, loss, found.bound, is_exact)


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

    def best_of_sizes(self) -> _States:
        """Those that lose less than all that are as small."""
        order = np.lexsort((self.losses, self.sizes))
        losses = self.losses[order]
        better = np.ones(len(order), bool)
        better[1:] = losses[1:] < np.minimum.accumulate(losses)[:-1]
        return self.of(order[better])

"""What `benchmarks/scale.py` tells: each line measured several times, its median and its spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from processes import Measured

WIDTH = 46
"""Of a line's title."""

PEAK = 1.6e9
"""Bytes resident that no compression or synthesis should exceed."""


@dataclass(frozen=True)
class Goal:
    """What a line's ratio should be: at most `most`, at least `least`; neither where it is only to
    be reported. is_small: whether the process should also stay within `PEAK`."""

    most: float | None = None
    least: float | None = None
    is_small: bool = False

    def __str__(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return "report" if self.least is None else f">= {self.least:g}"

    def is_missed(self, ratio: float) -> bool:
        too_large = self.most is not None and ratio > self.most
        return too_large or (self.least is not None and ratio < self.least)


REPORT = Goal()


@dataclass(frozen=True)
class Taken:
    """What a line took in one repeat. ratio: to the baseline of the same repeat, or a rate. limit:
    what bounds the work, in ns a weight, and its name. size: bytes of the files that it reads, 0
    where it is not told how often it does."""

    seconds: float
    ratio: float
    cost: Measured | None = None
    weights: int = 0
    limit: tuple[float, str] | None = None
    size: int = 0


@dataclass(frozen=True)
class Line:
    """All repeats of one line, which has at least one. goal: None of a baseline."""

    title: str
    goal: Goal | None
    taken: list[Taken] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the ratios, not the ratio of medians."""
        return median(each.ratio for each in self.taken)

    def misses(self) -> list[str]:
        """In words, how the line misses its goal, or exceeds `PEAK`; none if it does neither."""
        if self.goal is None:
            return []
        words = []
        if self.goal.is_missed(self.ratio):
            words.append(f"{self.ratio:.2f}, goal {self.goal}")
        if self.goal.is_small and self._peak > PEAK:
            words.append(f"{self._peak / 1e9:.2f} GB, goal <= {PEAK / 1e9:g}")
        return words

    @property
    def _costs(self) -> list[Measured]:
        return [each.cost for each in self.taken if each.cost is not None]

    @property
    def _peak(self) -> float:
        """The most of all repeats."""
        return max((cost.peak for cost in self._costs), default=0)

    def row(self) -> str:
        ratios = [each.ratio for each in self.taken]
        seconds = median(each.seconds for each in self.taken)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        goal = "" if self.goal is None else str(self.goal)
        row = f"{self.title:{WIDTH}} {seconds:8.2f} {self.ratio:8.2f} {spread:>12} {goal:>8}"
        return f"{row} {self._processor()}".rstrip()

    def _read(self) -> str:
        """How many times the size of the files was asked for, and came from a disk."""
        size = self.taken[0].size
        asked = [cost.asked for cost in self._costs if cost.asked is not None]
        fetched = [cost.fetched for cost in self._costs if cost.fetched is not None]
        if not size or not asked or not fetched:
            return f"{'':8} {'':8}"
        return f"{median(asked) / size:8.3f} {median(fetched) / size:8.3f}"

    def _processor(self) -> str:
        if not self._costs:
            return ""
        user = median(cost.user for cost in self._costs)
        system = median(cost.system for cost in self._costs)
        known = [cost.shared for cost in self._costs if cost.shared is not None]
        shared = f"{median(known):.0%}" if known else ""
        words = f"{user:8.2f} {system:8.2f} {shared:>8} {self._peak / 1e9:8.2f} {self._read()}"
        first = self.taken[0]
        if not first.weights or first.limit is None:
            return words
        ns = median(1e9 * (cost.user + cost.system) / first.weights for cost in self._costs)
        least, name = first.limit
        return f"{words} {ns:8.2f} {least / ns:7.1%} {name}"


class Table:
    """The lines in the order in which they were measured first."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def add(self, title: str, goal: Goal | None, taken: Taken) -> None:
        self._lines.setdefault(title, Line(title, goal)).taken.append(taken)

    def rows(self) -> Iterator[str]:
        heads = f"{'s':>8} {'ratio':>8} {'min-max':>12} {'goal':>8} {'user':>8} {'sys':>8}"
        rest = f"{'shared':>8} {'peak GB':>8} {'read':>8} {'disk':>8} {'ns':>8}"
        yield f"{'':{WIDTH}} {heads} {rest}   limit"
        for line in self._lines.values():
            yield line.row()
        yield from ("", *self._summary())

    def _summary(self) -> list[str]:
        missed = [
            f"  {line.title.strip()}: {words}"
            for line in self._lines.values()
            for words in line.misses()
        ]
        counts = {len(line.taken) for line in self._lines.values()}
        repeats = " or ".join(str(count) for count in sorted(counts))
        return [f"medians of {repeats}; goals that are missed:", *(missed or ["  none"])]

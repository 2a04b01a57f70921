"""Which sizes a pilot measures: three that are predicted to be safe, and an aggressive one.

A point is the smallest file whose predicted KL keeps to its aim. What the points before were
measured to cost, over what was predicted of them, is expected of the next one too: if the first one
cost twice as much as predicted, half as much is asked of the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ders_core.errors import RecipeError
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.bounds import Bound
from ders_core.tune.pilot.outcome import SAFE_KL, Role

AIMS: tuple[tuple[Role, float], ...] = (
    ("safe", SAFE_KL / 10),
    ("safe", SAFE_KL / 3),
    ("safe", 0.8 * SAFE_KL),
    ("aggressive", 10 * SAFE_KL),
)
"""Of each point, in nats a token. The third safe one leaves room for its interval."""

APART = 0.03
"""Points whose sizes are nearer than this share are one."""

MOST_FACTOR = 4.0
"""What one measurement may say of the next, at most."""


@dataclass(frozen=True)
class Aim:
    """role, aim: as of `Point`. asked: the predicted KL that is asked for."""

    role: Role
    aim: float
    asked: float


@dataclass
class Ladder:
    """Points from the largest file to the smallest. factor: measured over predicted, of the last
    one."""

    solver: Solver
    factor: float = 1.0
    smallest: float = float("inf")

    def steps(self) -> Iterator[tuple[Aim, Allocation]]:
        """Each next one by what `learn` was told meanwhile. Where files cannot be smaller, there
        are fewer points."""
        for role, aim in AIMS:
            asked = aim / self.factor
            try:
                found = self.solver.solve(Bound("kl", asked))
            except RecipeError:  # even the largest file is predicted to cost more
                continue
            if found.nbytes <= self.smallest * (1 - APART):
                self.smallest = found.nbytes
                yield Aim(role, aim, asked), found

    def learn(self, measured: float, predicted: float) -> None:
        """KLs of a point, nats a token."""
        if measured > 0 and predicted > 0:
            factor = measured / predicted
            self.factor = min(max(factor, 1 / MOST_FACTOR), MOST_FACTOR)

"""The best choice: against every choice there is, and against scipy's solver (HiGHS)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from ders_core.tune.knapsack import Options, Solution, least_loss, least_size


def options(*pairs: tuple[float, float]) -> Options:
    sizes, losses = np.array(pairs, float).T
    return Options(sizes, losses)


def by_milp(choices: list[Options], limit: float) -> float | None:
    """The least loss; None where nothing fits."""
    sizes = np.concatenate([each.sizes for each in choices])
    losses = np.concatenate([each.losses for each in choices])
    owner = np.repeat(np.arange(len(choices)), [len(each.sizes) for each in choices])
    one_each = (owner[None] == np.arange(len(choices))[:, None]).astype(float)
    result = milp(
        losses,
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes[None], -np.inf, limit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return float(result.fun) if result.success else None


def by_trying_all(choices: list[Options], limit: float) -> float | None:
    losses = [
        sum(each.losses[n] for each, n in zip(choices, numbers, strict=True))
        for numbers in product(*(range(len(each.sizes)) for each in choices))
        if sum(each.sizes[n] for each, n in zip(choices, numbers, strict=True)) <= limit
    ]
    return min(losses, default=None)


def check(solution: Solution, choices: list[Options], limit: float) -> None:
    """What a solution says of itself is so."""
    pairs = list(zip(choices, solution.chosen, strict=True))
    assert solution.size == pytest.approx(sum(each.sizes[n] for each, n in pairs))
    assert solution.loss == pytest.approx(sum(each.losses[n] for each, n in pairs))
    assert solution.size <= limit * (1 + 1e-12)
    assert solution.bound <= solution.loss * (1 + 1e-9) + 1e-12


@st.composite
def problems(draw: st.DrawFn, most_choices: int, most_options: int) -> tuple[list[Options], float]:
    """Whole numbers, so that sums are exact."""
    pair = st.tuples(st.integers(0, 50), st.integers(0, 1000))
    choice = st.lists(pair, min_size=1, max_size=most_options)
    pairs = draw(st.lists(choice, min_size=1, max_size=most_choices))
    choices = [options(*each) for each in pairs]
    least, most = least_size(choices), sum(each.sizes.max() for each in choices)
    return choices, float(draw(st.integers(int(least) - 1, int(most) + 1)))


@given(problems(4, 5))
@settings(max_examples=150, deadline=None)
def test_it_is_the_best_of_all(problem: tuple[list[Options], float]) -> None:
    choices, limit = problem
    expected, solution = by_trying_all(choices, limit), least_loss(choices, limit)
    assert (solution is None) == (expected is None)
    if solution is not None:
        check(solution, choices, limit)
        assert solution.loss == expected


@given(problems(20, 12))
@settings(max_examples=25, deadline=None)
def test_it_is_what_highs_finds(problem: tuple[list[Options], float]) -> None:
    choices, limit = problem
    expected, solution = by_milp(choices, limit), least_loss(choices, limit)
    assert (solution is None) == (expected is None)
    if solution is not None:
        check(solution, choices, limit)
        assert solution.is_exact or solution.loss <= solution.bound * (1 + 1e-4)
        assert solution.loss == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_many_choices_stay_near_the_bound() -> None:
    """32 layers × 8 experts × 3 projections, 40 options each, as rates and distortions are."""
    random = np.random.default_rng(0)
    choices = []
    for weight in np.exp(random.normal(size=768)):
        bits = np.sort(random.uniform(0, 8, 40))
        choices.append(Options(bits * 1e6, weight * 4**-bits * random.uniform(1, 1.5, 40)))
    solution = least_loss(choices, 2e9)
    assert solution is not None
    check(solution, choices, 2e9)
    assert solution.gap <= 1e-4


def test_room_that_no_step_fits_is_used_by_others() -> None:
    """The step that saves most is too large; a smaller one is taken in its place."""
    choices = [options((0, 100), (10, 0)), options((0, 50), (4, 20), (7, 18))]
    solution = least_loss(choices, 9)
    assert solution is not None
    assert solution.chosen.tolist() == [0, 2]


def test_nothing_fits() -> None:
    assert least_loss([options((2, 1), (3, 0))], 1.5) is None

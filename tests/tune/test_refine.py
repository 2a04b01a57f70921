"""The best move and the best of another choice, up to each: against a search of all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.tune.refine import best_two

MOVES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])))


@settings(max_examples=200, deadline=None)
@given(moves=MOVES)
def test_the_best_two_are_of_two_choices(moves: list[tuple[int, float]]) -> None:
    """Values are few, so that many are equal."""
    choices = np.array([choice for choice, _ in moves], int)
    saved = np.array([value for _, value in moves], float)
    best, other = best_two(choices, saved)
    assert len(best) == len(other) == len(moves)
    for number in range(len(moves)):
        first, second = best[number], other[number]
        assert first <= number
        assert saved[first] == saved[: number + 1].max()
        rivals = saved[: number + 1][choices[: number + 1] != choices[first]]
        if not len(rivals):
            assert second == -1
            continue
        assert 0 <= second <= number
        assert choices[second] != choices[first]
        assert saved[second] == rivals.max()

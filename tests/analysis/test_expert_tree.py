"""The tree of a group's experts, against average linkage by its definition."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.analysis.expert_tree import expert_tree


def drawn(count: int, seed: int) -> np.ndarray:
    """A symmetric matrix of distances, no two of them the same."""
    random = np.random.default_rng(seed).random((count, count))
    apart: np.ndarray = np.triu(random, 1) + np.triu(random, 1).T
    return apart


def between(apart: np.ndarray, left: frozenset[int], right: frozenset[int]) -> float:
    return float(np.mean([apart[a, b] for a in left for b in right]))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(0, 10**6), st.data())
def test_the_nearest_branches_are_joined_first_within_a_set(
    count: int, seed: int, data: st.DataObject
) -> None:
    apart = drawn(count, seed)
    sets = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    tree = expert_tree(apart, sets)
    assert len(tree.joins) == count - 1
    branches = {frozenset([expert]) for expert in range(count)}

    def cost(pair: tuple[frozenset[int], frozenset[int]]) -> tuple[bool, float]:
        crosses = len({sets[expert] for branch in pair for expert in branch}) > 1
        return crosses, between(apart, *pair)

    for join in tree.joins:
        left, right = frozenset(join.left), frozenset(join.right)
        nearest = min(combinations(branches, 2), key=cost)
        assert set(nearest) == {left, right}
        assert join.apart == pytest.approx(between(apart, left, right))
        branches = branches - {left, right} | {left | right}
    assert sorted(tree.order) == list(range(count))
    for join in tree.joins:  # every branch is a piece of the order
        first = tree.order.index(join.left[0])
        both = join.left + join.right
        assert tree.order[first : first + len(both)] == both
    changes = sum(sets[a] != sets[b] for a, b in pairwise(tree.order))
    assert changes == len(set(sets)) - 1


def test_no_order_that_fits_the_tree_has_nearer_neighbours() -> None:
    apart = drawn(6, 3)
    tree = expert_tree(apart, [0] * 6)
    branches = [set(join.left + join.right) for join in tree.joins]

    def length(order: tuple[int, ...]) -> float:
        return float(sum(apart[a, b] for a, b in pairwise(order)))

    def fits(order: tuple[int, ...]) -> bool:
        places = [sorted(map(order.index, branch)) for branch in branches]
        return all(place[-1] - place[0] == len(place) - 1 for place in places)

    least = min(length(order) for order in permutations(range(6)) if fits(order))
    assert length(tree.order) == pytest.approx(least)


def test_a_table_has_a_row_for_each_join() -> None:
    apart = np.array([[0, 9, 1], [9, 0, 8], [1, 8, 0]], dtype=float)
    rows = expert_tree(apart, [0, 0, 0]).table()
    (first, second) = rows.to_dict("records")
    assert {first["left"], first["right"]} == {"0", "2"}
    assert first["one_minus_cos"] == 1
    assert {"1"} < {second["left"], second["right"]}
    assert second["one_minus_cos"] == 8.5


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_experts_and_ones_that_are_the_same(count: int) -> None:
    tree = expert_tree(np.zeros((count, count)), [0] * count)
    assert sorted(tree.order) == list(range(count))
    assert [join.apart for join in tree.joins] == [0.0] * max(count - 1, 0)

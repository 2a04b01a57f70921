"""Ward's clustering against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage

from ders_core.decompose.ward import ward


def squares_of(points: np.ndarray) -> np.ndarray:
    squares: np.ndarray = ((points[:, None] - points[None, :]) ** 2).sum(-1)
    return squares


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_joins_and_costs_are_those_of_scipy(count: int) -> None:
    random = np.random.default_rng(count)
    for spread in (0.0, 3.0):  # one cloud, or several
        points = random.normal(size=(count, 5)) + spread * random.integers(0, 3, (count, 1))
        tree, reference = ward(squares_of(points)), linkage(points, "ward")
        assert np.allclose(tree.costs, reference[:, 2] ** 2 / 2)
        for clusters in range(1, count + 1):
            cut, wanted = tree.cut(clusters), cut_tree(reference, n_clusters=clusters)[:, 0]
            alike, wanted_alike = cut[:, None] == cut, wanted[:, None] == wanted
            assert np.array_equal(alike, wanted_alike)


def test_equal_points_are_joined_in_their_order() -> None:
    tree = ward(squares_of(np.array([[0.0], [5.0], [0.0], [5.0], [0.0]])))
    assert tree.joins[:3] == [(0, 2), (0, 4), (1, 3)]
    assert tree.costs[:3].tolist() == [0.0, 0.0, 0.0]
    assert tree.cut(2).tolist() == [0, 1, 0, 1, 0]


def test_one_point_is_one_cluster() -> None:
    tree = ward(np.zeros((1, 1)))
    assert (list(tree.joins), tree.costs.size) == ([], 0)
    assert tree.cut(1).tolist() == [0]

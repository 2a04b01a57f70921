"""A tree of a group's experts: those that are most alike are joined first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.later import np, pd


@dataclass(frozen=True)
class Join:
    """Two branches that become one.

    left, right: their experts, in the order of the tree. apart: the mean 1 − cos of an expert of
    one and an expert of the other.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    apart: float


@dataclass(frozen=True)
class ExpertTree:
    """order: the experts, so that those of every branch stand together. joins: the first one
    first; one fewer than experts."""

    order: tuple[int, ...]
    joins: tuple[Join, ...]

    def table(self) -> pd.DataFrame:
        """A row for each join: experts of both branches, such as "0 3", and `one_minus_cos`."""
        return pd.DataFrame(
            {
                "left": [" ".join(map(str, join.left)) for join in self.joins],
                "right": [" ".join(map(str, join.right)) for join in self.joins],
                "one_minus_cos": [join.apart for join in self.joins],
            }
        )


def expert_tree(apart: np.ndarray, sets: Sequence[int]) -> ExpertTree:
    """Average linkage (UPGMA: Sokal and Michener 1958), in which the experts of a set are joined
    before the sets are; like experts stand next to each other (Bar-Joseph et al. 2001).

    apart: 1 − cos of every pair, `[K, K]`. sets: the set of each expert.
    """
    count = len(apart)
    if count < 2:
        return ExpertTree(tuple(range(count)), ())
    from scipy.cluster.hierarchy import linkage  # here: other pages need no scipy
    from scipy.spatial.distance import squareform

    symmetric = (apart + apart.T) / 2
    np.fill_diagonal(symmetric, 0.0)
    of_another = np.not_equal.outer(sets, sets)
    beyond = 2 * float(symmetric.max()) or 1.0  # farther than any two experts
    condensed = squareform(symmetric + beyond * of_another, checks=False)
    merged = linkage(condensed, "average", optimal_ordering=True)
    branches: list[tuple[int, ...]] = [(expert,) for expert in range(count)]
    joins = []
    for first, second in merged[:, :2].astype(int):
        left, right = branches[first], branches[second]
        joins.append(Join(left, right, float(symmetric[np.ix_(left, right)].mean())))
        branches.append(left + right)
    return ExpertTree(branches[-1], tuple(joins))

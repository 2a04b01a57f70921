"""Ward's hierarchical clustering (Ward 1963) of points that are known by their distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.later import np


@dataclass(frozen=True)
class Tree:
    """joins: the two clusters that each step joins, each named by its first point, the smaller name
    first, which the union keeps. costs: what each step adds to Σ_C Σ_{k∈C} ‖x_k − mean_C‖², `[n−1]`
    float64, ascending."""

    joins: Sequence[tuple[int, int]]
    costs: np.ndarray

    def cut(self, count: int) -> np.ndarray:
        """The first point of each point's cluster, `[n]`, where `count` clusters are left."""
        names = np.arange(len(self.joins) + 1)
        for kept, joined in self.joins[: len(names) - count]:
            names[names == joined] = kept
        return names


def ward(squares: np.ndarray) -> Tree:
    """Join, one pair at a time, the clusters whose union costs least; of equals, the first.

    squares: ‖x_i − x_j‖², `[n, n]` float64, symmetric.

    Half the squared distance of two points is what their union costs. That of a union to another
    cluster follows from those of its parts (Lance and Williams 1967).
    """
    count = len(squares)
    apart = squares / 2
    np.fill_diagonal(apart, np.inf)
    sizes = np.ones(count)
    nearest, least = apart.argmin(1), apart.min(1, initial=np.inf)
    joins, costs = [], np.zeros(max(count - 1, 0))
    for step in range(count - 1):
        kept = int(least.argmin())
        kept, joined = sorted((kept, int(nearest[kept])))
        cost = apart[kept, joined]
        joins.append((kept, joined))
        costs[step] = max(cost, costs[step - 1] if step else 0.0)
        whole = sizes[kept] + sizes[joined] + sizes
        union = (sizes[kept] + sizes) * apart[kept] + (sizes[joined] + sizes) * apart[joined]
        union = np.maximum((union - sizes * cost) / whole, 0.0)
        union[[kept, joined]] = np.inf
        union[np.isinf(apart[kept])] = np.inf  # clusters that are part of others by now
        sizes[kept] += sizes[joined]
        apart[kept] = apart[:, kept] = union
        apart[joined] = apart[:, joined] = np.inf
        changed = (nearest == kept) | (nearest == joined)
        changed[kept] = True
        rows = np.flatnonzero(changed & np.isfinite(least))
        nearest[rows], least[rows] = apart[rows].argmin(1), apart[rows].min(1)
        least[joined] = np.inf
        closer = (union < least) | ((union == least) & (kept < nearest))
        nearest[closer], least[closer] = kept, union[closer]
    return Tree(joins, costs)

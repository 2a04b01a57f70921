"""Which experts of a group share a start: clusters, how alike experts are in and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ders_core.decompose.clusters import Clusters, cluster


@dataclass(frozen=True)
class Starts:
    """count: of the sets of experts that share a start each. within, between: mean cosine of two
    experts of one set, and of two of different sets."""

    count: int
    within: float
    between: float


def find_clusters(cos_delta: np.ndarray, norm_delta: np.ndarray, bits: int) -> Clusters:
    """From the cosines `[K, K]` and norms `[K]` of the deltas, which are their Gram matrix."""
    return cluster(cos_delta * norm_delta[:, None] * norm_delta[None, :], bits=bits)


def starts_of(one_minus_cos: np.ndarray, assignment: Sequence[int]) -> Starts | None:
    """How alike the experts of a group are, `[K, K]`, in and between clusters; None for one."""
    own = np.asarray(assignment)
    count = int(own.max()) + 1
    if count < 2:
        return None
    together = own[:, None] == own[None, :]
    pairs = ~np.eye(len(own), dtype=bool)
    inside = one_minus_cos[together & pairs]
    within = 1.0 - float(inside.mean()) if inside.size else 1.0
    return Starts(count, within, 1.0 - float(one_minus_cos[~together].mean()))


def common_starts(found: Sequence[Starts | None]) -> Starts | None:
    """The model's, from its groups': None unless at least half of them fall into clusters.

    count: the commonest, the smaller of two that are as common.
    """
    several = [one for one in found if one is not None]
    if not several or 2 * len(several) < len(found):
        return None
    counts = Counter(one.count for one in several)
    count = min(counts, key=lambda number: (-counts[number], number))
    within, between = np.mean([(one.within, one.between) for one in several], axis=0)
    return Starts(count, float(within), float(between))


MOST_NAMED = 8
"""So many groups of experts are named one by one in a sentence."""


def clusters_sentence(clusters: Sequence[int], gain: float) -> str:
    """One sentence about a group. clusters: of each expert; gain: share of ΣΔ² that is left."""
    own = np.asarray(clusters)
    count = int(own.max()) + 1
    if count < 2:
        return (
            f"One base serves all {len(own)} experts." if len(own) > 1 else "There is one expert."
        )
    sets = [np.flatnonzero(own == cluster).tolist() for cluster in range(count)]
    if count <= MOST_NAMED:
        named = ": " + ", ".join("{" + _numbers(experts) + "}" for experts in sets)
    else:
        sizes = sorted(len(experts) for experts in sets)
        span = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        named = f" of {span} each"
    return (
        f"{count} groups of experts{named}; a base for each would leave {gain:.2g} × the delta "
        "energy of one base: set base: {clusters: auto} in the recipe."
    )


def _numbers(experts: Sequence[int]) -> str:
    """[0, 3, 4, 5] as '0, 3–5'."""
    runs: list[list[int]] = []
    for expert in experts:
        if runs and expert == runs[-1][-1] + 1:
            runs[-1].append(expert)
        else:
            runs.append([expert])
    return ", ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )

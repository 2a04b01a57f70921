"""Which experts of a group share a start: their clusters, and cosines within and between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.decompose.clusters import Clusters, cluster
from ders_core.later import np
from ders_core.units import number_text


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
    """Mean cosines within and between the clusters of a group, from 1 − cos `[K, K]`; None for one
    cluster."""
    clusters = np.asarray(assignment)
    count = int(clusters.max()) + 1
    if count < 2:
        return None
    together = clusters[:, None] == clusters[None, :]
    pairs = ~np.eye(len(clusters), dtype=bool)
    inside = one_minus_cos[together & pairs]
    within = 1.0 - float(inside.mean()) if inside.size else 1.0
    return Starts(count, within, 1.0 - float(one_minus_cos[~together].mean()))


def common_starts(of_groups: Sequence[Starts | None]) -> Starts | None:
    """The model's, from its groups': None unless at least half of them fall into clusters.

    count: the commonest, the smaller of two that are as common.
    """
    several = [starts for starts in of_groups if starts is not None]
    if not several or 2 * len(several) < len(of_groups):
        return None
    counts = Counter(starts.count for starts in several)
    count = min(counts, key=lambda number: (-counts[number], number))
    within, between = np.mean([(starts.within, starts.between) for starts in several], axis=0)
    return Starts(count, float(within), float(between))


MOST_NAMED = 8
"""Sets of experts that a sentence lists one by one."""


def clusters_sentence(clusters: Sequence[int], gain: float) -> str:
    """One sentence about a group. clusters: of each expert; gain: share of ΣΔ² that is left."""
    assignment = np.asarray(clusters)
    count, experts = int(assignment.max()) + 1, len(assignment)
    if count < 2:
        if experts == 1:
            return "There is one expert."
        return f"One base serves {'both' if experts == 2 else f'all {experts}'} experts."
    sets = [np.flatnonzero(assignment == cluster).tolist() for cluster in range(count)]
    if count <= MOST_NAMED:
        named = ": " + ", ".join("{" + _numbers(members) + "}" for members in sets)
    else:
        sizes = sorted(len(members) for members in sets)
        span = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        named = f" of {span} each"
    return (
        f"{count} sets of experts{named}; a base for each would leave {number_text(gain, 2)} × the "
        "delta energy of one base: set base: {clusters: auto} in the recipe."
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

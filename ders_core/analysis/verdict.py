"""Whether the experts share one start: the verdict, and a quick one from a few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ders_core.analysis.origins import Starts, common_starts, starts_of
from ders_core.analysis.saving import Saving, SharedEnergy, saving
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.decompose.clusters import cluster, not_finite
from ders_core.later import np
from ders_core.units import number_text

UPCYCLED = 0.5
ALIKE = 0.95
SCRATCH = 0.1
SAMPLED_GROUPS = 4
SAMPLED_ROWS = 32
SAMPLED_EXPERT = 1 << 16
SAMPLED_GROUP = 1 << 20
"""At most this many values of one expert, and of a group; but always
`SAMPLED_VALUES` of each expert."""

SAMPLED_VALUES = 8192
"""Of each expert, for the sample's clusters: cosines of unlike experts are within about 0.01."""


@dataclass(frozen=True)
class Verdict:
    """mean_cosine: over pairs of experts, then over groups; an expert of zeros has cosine 0 with
    every other one. starts: the sets of experts that share a start each, None where one base is
    best. saving: what decomposition saves. `single`: no layer has two experts."""

    verdict: Literal["upcycled", "partly", "scratch", "single"]
    mean_cosine: float
    sentence: str
    starts: Starts | None = None
    saving: Saving | None = None

    @property
    def short(self) -> str:
        """The verdict and its figure, in a few words."""
        if self.verdict == "single":
            return "one expert in each layer, nothing to compare"
        return f"{self.verdict} (mean cosine of experts {self.mean_cosine:.4f})"


SINGLE = Verdict(
    "single",
    1.0,
    "There is one expert in each layer, so there is nothing to compare, and no other expert to "
    "share its weight with.",
)
"""Of a model without pairs of experts."""


def judge(
    mean_cosine: float, starts: Starts | None = None, saving: Saving | None = None
) -> Verdict:
    """`upcycled` from 0.5 on, `scratch` below 0.1, `partly` between. Upcycled experts are usually
    above 0.95, experts trained from scratch below 0.1.

    starts: clear sets of experts, alike within and unlike between, are `partly` too, whatever the
    mean of all pairs is: low for many small sets, high for a large and a small one. saving: told
    after that.
    """
    verdict = _of_cosines(mean_cosine, starts)
    if saving is None:
        return verdict
    sentence = f"{verdict.sentence} {saving.sentence}"
    return replace(verdict, sentence=sentence, saving=saving)


def _of_cosines(mean_cosine: float, starts: Starts | None) -> Verdict:
    """The verdict without what is saved."""
    figure = f"mean cosine of experts {mean_cosine:.4f}"
    if starts is not None and starts.within >= UPCYCLED > starts.between:
        return Verdict(
            "partly",
            mean_cosine,
            f"The experts come from {starts.count} starts: {starts.count} sets of experts share "
            f"a start each (mean cosine {starts.within:.4f} within a set, {starts.between:.4f} "
            f"between sets, {mean_cosine:.4f} over all); set base: {{clusters: auto}} in the "
            "recipe, so that each set gets its own base.",
            starts,
        )
    if mean_cosine >= UPCYCLED:
        more = (
            f" They fall into {starts.count} sets of still closer experts (mean cosine "
            f"{starts.within:.4f} within a set, {starts.between:.4f} between sets); "
            "base: {clusters: auto} in the recipe gives each its own base."
            if starts is not None
            else ""
        )
        apart = number_text(100 * (2 * (1 - mean_cosine)) ** 0.5)
        return Verdict(
            "upcycled",
            mean_cosine,
            f"The experts share one start: two of them differ by about {apart} % of their weight "
            f"({figure}; experts trained from scratch are below {SCRATCH}).{more}",
            starts,
        )
    if mean_cosine < SCRATCH:
        return Verdict(
            "scratch",
            mean_cosine,
            f"The experts have no common start ({figure}; upcycled ones are above {ALIKE}): the "
            "model was trained from scratch. DeRS is not made for it: deltas are about as large as "
            "the weights. You may go on, but expect to lose much more.",
            starts,
        )
    return Verdict(
        "partly",
        mean_cosine,
        f"The experts share a start only in part ({figure}): they were trained far apart, or cut "
        "from several FFNs; expect to lose more.",
        starts,
    )


def mean_pair_cosine(weights: np.ndarray) -> float:
    """Mean cosine over pairs of rows of `[K, n]`, in float64; 1 for a single expert.

    A row of zeros has cosine 0 with the others, and with itself.
    """
    unit = _unit_rows(weights)
    count = len(unit)
    if count < 2:
        return 1.0
    with_themselves = np.square(unit).sum()
    return float((np.square(unit.sum(0)).sum() - with_themselves) / (count * (count - 1)))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of `[n, values]` in float64, each divided by its norm; rows of zeros stay zeros."""
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: np.ndarray = exact / np.where(norms > 0, norms, 1.0)
    return unit


def sampled_verdict(checkpoint: Checkpoint) -> Verdict:
    """The verdict from a few rows of a few groups over the model's depth; a few MB are read.

    Raises CheckpointError if one of them holds values that are not finite.
    """
    groups = [group for group in checkpoint.groups() if group.shape[0] > 1]
    if not groups:
        return SINGLE
    places = np.linspace(0, len(groups) - 1, SAMPLED_GROUPS).round()
    chosen = [groups[int(place)] for place in dict.fromkeys(places)]
    samples = [_rows(group) for group in chosen]
    cosines = [mean_pair_cosine(weights) for weights in samples]
    bits = [8 * group.dtype.itemsize for group in chosen]
    sets = [_sampled_sets(*sample) for sample in zip(samples, bits, strict=True)]
    energies = [
        SharedEnergy(len(weights), math.prod(group.shape), dtype_bits, of_deltas)
        for group, weights, dtype_bits, (_, of_deltas) in zip(
            chosen, samples, bits, sets, strict=True
        )
        if of_deltas
    ]
    starts = common_starts([starts for starts, _ in sets])
    return judge(float(np.mean(cosines)), starts, saving(energies, sampled=True))


def _sampled_sets(weights: np.ndarray, bits: int) -> tuple[Starts | None, dict[int, float]]:
    """The starts, and ΣΔ²/ΣW² by the number of bases; from evenly spaced values of `[K, n]`."""
    size = weights.shape[1]
    places = np.linspace(0, size - 1, min(SAMPLED_VALUES, size)).astype(np.int64)
    sample = weights[:, places].astype(np.float64)
    centred = sample - sample.mean(0)
    assignment = cluster(centred @ centred.T, bits=bits).assignment
    unit = _unit_rows(sample)
    return starts_of(1.0 - unit @ unit.T, assignment), _of_deltas(sample, assignment)


def _of_deltas(sample: np.ndarray, assignment: Sequence[int]) -> dict[int, float]:
    """ΣΔ²/ΣW² with one base, and with one for each set; empty for weights of zeros."""
    whole = float(np.square(sample).sum())
    if not whole:
        return {}
    left = 0.0
    for number in set(assignment):
        members = sample[np.asarray(assignment) == number]
        left += float(np.square(members - members.mean(0)).sum())
    one = float(np.square(sample - sample.mean(0)).sum())
    return {1: one / whole, len(set(assignment)): left / whole}


def _rows(group: ExpertGroup) -> np.ndarray:
    """Rows from the middle of each expert (columns where stored transposed), `[K, n]` float32."""
    values = min(SAMPLED_EXPERT, max(SAMPLED_VALUES, SAMPLED_GROUP // group.shape[0]))
    rows = group.middle(SAMPLED_ROWS, values)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise not_finite(group, int(finite.argmin()))
    return rows

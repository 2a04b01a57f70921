"""A series of sizes from the smallest to one that loses nothing, each tuned and measured.

Between two measured points nothing is interpolated: where the KL rises much faster than predicted,
sizes between are measured until the cliff is narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import np
from ders_core.tune.assembled import size_of
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint
from ders_core.tune.measuring import Measuring, Setting
from ders_core.tune.scores import Candidate, Scores, UnitScores
from ders_core.tune.trials import Trial
from ders_core.tune.workbench import Workbench
from ders_core.units import bytes_text

POINTS = 6
STEEP = 2.0
"""A KL that rises by this much more than predicted, between two sizes, is a cliff."""

NARROW = 0.03
"""Sizes of a cliff that are nearer than this share of each other are near enough."""

SEARCHED = 3
"""Sizes that are measured to narrow each cliff, at most."""


@dataclass(frozen=True)
class Cliff:
    """Between two sizes in bytes that were measured, the KL rises much more than predicted. kl:
    nats a token. rise: measured over predicted rise."""

    small: int
    large: int
    kl_small: float
    kl_large: float
    rise: float

    @property
    def sentence(self) -> str:
        return (
            f"between {bytes_text(self.small)} and {bytes_text(self.large)} the KL falls from "
            f"{self.kl_small:.3g} to {self.kl_large:.3g}, {self.rise:.2g} times as far as predicted"
        )


@dataclass(frozen=True)
class Series:
    """tuned, uniform: the smallest first. cliffs: what was looked for between tuned points."""

    tuned: tuple[Trial, ...]
    uniform: tuple[Trial, ...]
    cliffs: tuple[Cliff, ...]
    factors: Mapping[str, float]


@unchanged_inputs()
def series(
    checkpoint: Checkpoint,
    scores: Scores,
    calibration: Path,
    directory: Path,
    setting: Setting,
    *,
    points: int = POINTS,
    constraints: Sequence[Constraint] = (),
    friendly: bool = False,
    name: str = "tuned",
    progress: Progress = quiet,
) -> Series:
    """Parameters are those of `ders_core.tune.prove.prove`; what was measured is used again.

    At each size the best uniform recipe by prediction is measured too. Raises DersError as
    compression and evaluation do, and CheckpointError if a file that is read is written meanwhile.
    """
    with Measuring(checkpoint, scores.calibration, directory, setting, progress) as measuring:
        bench = Workbench(measuring, scores, calibration, constraints, friendly, name)
        for size in _sizes(scores, points):
            bound = Bound("bytes", size)
            _measure(bench, bound)
            for form, allocation in bench.uniform(bound, 1):
                bench.measured(allocation, bound, "uniform", form)
        for cliff in _cliffs(bench):
            _narrow(bench, cliff)
        return Series(
            _of(bench, "tuned"), _of(bench, "uniform"), tuple(_cliffs(bench)), bench.factors
        )


def _measure(bench: Workbench, bound: Bound) -> None:
    allocation = bench.solved(bound)
    if allocation is not None and not bench.is_known(allocation):
        bench.measured(allocation, bound, "tuned")


def _sizes(scores: Scores, points: int) -> list[float]:
    """In bytes, with equal ratios between neighbours."""
    bound = Bound("bytes", scores.bytes_total)
    least, whole = (
        size_of(scores, bound, [_smallest(each, lossless=lossless) for each in scores.units])
        for lossless in (False, True)
    )
    sizes: list[float] = np.geomspace(least, whole, points + 2)[1:-1].tolist()
    return sizes


def _smallest(scored: UnitScores, *, lossless: bool) -> Candidate:
    """lossless: of those that lose nothing."""
    of_kind = [each for each in scored.candidates if each.codec.lossless or not lossless]
    return min(of_kind, key=lambda candidate: candidate.nbytes)


def _of(bench: Workbench, role: str) -> tuple[Trial, ...]:
    trials = [trial for trial in bench.trials if trial.role == role]
    return tuple(sorted(trials, key=lambda trial: trial.measured.nbytes))


def _cliffs(bench: Workbench) -> list[Cliff]:
    found = []
    for small, large in pairwise(_of(bench, "tuned")):
        measured = small.measured.kl - large.measured.kl
        predicted = sum(small.costs.values()) - sum(large.costs.values())
        if predicted > 0 and measured > STEEP * _usual(bench) * predicted:
            found.append(
                Cliff(
                    small.measured.nbytes,
                    large.measured.nbytes,
                    small.measured.kl,
                    large.measured.kl,
                    measured / predicted,
                )
            )
    return found


def _usual(bench: Workbench) -> float:
    """Measured over predicted KL, of the tuned trial in the middle."""
    ratios = [
        trial.measured.kl / sum(trial.costs.values())
        for trial in _of(bench, "tuned")
        if sum(trial.costs.values()) > 0
    ]
    return float(np.median(ratios)) if ratios else 1.0


def _narrow(bench: Workbench, cliff: Cliff) -> None:
    """Halve the cliff: the half that rises more is halved again."""
    low, high = cliff.small, cliff.large
    for _ in range(SEARCHED):
        if high <= low * (1 + NARROW):
            return
        before = len(bench.trials)
        _measure(bench, Bound("bytes", (low * high) ** 0.5))
        if len(bench.trials) == before:
            return
        middle = bench.trials[-1].measured
        kls = {each.measured.nbytes: each.measured.kl for each in _of(bench, "tuned")}
        if kls[low] - middle.kl > middle.kl - kls[high]:
            high = middle.nbytes
        else:
            low = middle.nbytes

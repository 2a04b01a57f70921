"""A series of sizes from the smallest to one that loses nothing, each tuned and measured.

Between two measured points nothing is interpolated: where the KL rises much faster than predicted,
sizes between are measured until the cliff is narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import np
from ders_core.tune.assembled import size_of
from ders_core.tune.bounds import Bound
from ders_core.tune.cliffs import Cliff, Measured, cliffs
from ders_core.tune.constraints import Constraint
from ders_core.tune.measured_series import Series
from ders_core.tune.measuring import Measuring, Setting
from ders_core.tune.scores import Candidate, Scores, UnitScores
from ders_core.tune.trials import Trial
from ders_core.tune.unseen import check_unseen
from ders_core.tune.workbench import Workbench

POINTS = 6
NARROW = 0.03
"""Sizes of a cliff that are nearer than this share of each other are near enough."""

SEARCHED = 3
"""Sizes that are measured to narrow each cliff, at most."""


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
    compression and evaluation do, EvaluationError if the calibration read the text, and
    CheckpointError if a file that is read is written meanwhile.
    """
    check_unseen(checkpoint, calibration, setting)
    with Measuring(checkpoint, scores.calibration, directory, setting, progress) as measuring:
        bench = Workbench(measuring, scores, calibration, constraints, friendly, name)
        for size in _sizes(scores, points):
            bound = Bound("bytes", size)
            _measure(bench, bound)
            for form, proposal in bench.uniform(bound, 1):
                bench.measured(proposal, bound, "uniform", form)
        for cliff in _cliffs(bench):
            _narrow(bench, cliff)
        return Series(
            _of(bench, "tuned"), _of(bench, "uniform"), tuple(_cliffs(bench)), bench.factors
        )


def _measure(bench: Workbench, bound: Bound) -> None:
    proposal = bench.solved(bound)
    if proposal is not None and not bench.is_known(proposal):
        bench.measured(proposal, bound, "tuned")


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


def _measured(trial: Trial) -> Measured:
    return Measured(trial.measured.nbytes, trial.measured.kl, sum(trial.costs.values()))


def _cliffs(bench: Workbench) -> list[Cliff]:
    return cliffs(_measured(trial) for trial in _of(bench, "tuned"))


def _narrow(bench: Workbench, cliff: Cliff) -> None:
    """Halve the cliff: the half that rises more is halved again."""
    by_size = {trial.measured.nbytes: _measured(trial) for trial in _of(bench, "tuned")}
    low, high = by_size[cliff.small], by_size[cliff.large]
    for _ in range(SEARCHED):
        small, large = low.nbytes, high.nbytes
        if large <= small * (1 + NARROW):
            return
        before = len(bench.trials)
        _measure(bench, Bound("bytes", (small * large) ** 0.5))
        if len(bench.trials) == before:
            return
        middle = _measured(bench.trials[-1])
        if low.rise_from(middle) > middle.rise_from(high):
            high = middle
        else:
            low = middle

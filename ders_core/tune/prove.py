"""A tuned recipe is proved: measured, against the best uniform ones, and solved again.

Predictions err (`ders_core.tune.corrections`), so what was predicted to be best is compressed and
measured on text that the calibration never saw, and so is the best recipe of each single form at
the same size. What each form's prediction got wrong is fitted to all of that, and the scores are
solved again; a bound that was missed is tightened. Factors of few measurements may mislead: where
a solution by them is no better than one before, they are believed half as much, and after that no
more. The best of all that was measured is kept, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Progress, quiet
from ders_core.files.inputs import unchanged_inputs
from ders_core.pipeline.quality import kl_text
from ders_core.tune.allocate import solve
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint
from ders_core.tune.measuring import Measuring, Setting
from ders_core.tune.scores import Scores
from ders_core.tune.trials import Trial
from ders_core.tune.unseen import check_unseen
from ders_core.tune.workbench import Proposal, Workbench
from ders_core.units import number_text

ROUNDS = 5
"""How often is solved, at most; most proofs need two or three."""

UNIFORM = 4
"""Forms whose best uniform recipe is measured, at most."""

NOTEWORTHY = 1.5
"""A factor beyond is told."""

LEAST_BELIEF = 0.5
"""In factors, as of `Workbench`; below, nothing more is tried."""

TIGHTER = 0.995
"""A bound that was missed is tightened by what it was missed by, and by this."""


@dataclass(frozen=True)
class Proof:
    """trials: in the order in which they were measured. best: the number of the best that keeps to
    the bound; None if none does. factors: measured over predicted, of each form. remarks: what to
    know about it, as sentences."""

    bound: Bound
    trials: tuple[Trial, ...]
    best: int | None
    factors: Mapping[str, float]
    remarks: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Which one is kept, and what it costs."""
        if self.best is None:
            nearest = min(self.trials, key=lambda trial: trial.size / trial.most)
            return (
                f"none of {len(self.trials)} recipes that were measured keeps to "
                f"{self.bound.label}; the nearest is the {nearest.label} one"
            )
        best = self.trials[self.best]
        return (
            f"of {len(self.trials)} recipes that were measured the {best.label} one is best: KL "
            f"{kl_text(best.measured.quality.to_dict())} nats a token, predicted "
            f"{number_text(best.predicted_kl)}"
        )


@unchanged_inputs()
def prove(
    checkpoint: Checkpoint,
    scores: Scores,
    calibration: Path,
    bound: Bound,
    directory: Path,
    setting: Setting,
    *,
    constraints: Sequence[Constraint] = (),
    friendly: bool = False,
    name: str = "tuned",
    progress: Progress = quiet,
) -> Proof:
    """Compress and measure what is best by prediction, and the best uniform recipes.

    scores: of the checkpoint by the calibration, which recipes name. directory: keeps what was
    measured, as it comes, and is used again; packed checkpoints are removed from it. Raises
    RecipeError if nothing meets the bound; EvaluationError if the calibration read the text;
    DersError as compression and evaluation do; CheckpointError if a file that is read is written
    meanwhile.
    """
    doubts = check_unseen(checkpoint, calibration, setting)
    with Measuring(checkpoint, scores.calibration, directory, setting, progress) as measuring:
        bench = Workbench(measuring, scores, calibration, constraints, friendly, name)
        first = solve(scores, bound, constraints=constraints, friendly=friendly)
        target: Proposal | None = Proposal(first)
        tightened = bound
        for number in range(ROUNDS):
            if target is None:
                break
            best = _best(bound, bench.trials)
            trial = bench.measured(target, bound, "tuned")
            if not number:
                _measure_uniform(bench, bound)
            if not trial.keeps:
                tightened = _tighter(tightened, bound, trial)
            elif best is not None and _best(bound, bench.trials) == best:
                bench.belief /= 2
                if bench.belief < LEAST_BELIEF:
                    break
            target = _next(bench, tightened)
    trials = tuple(bench.trials)
    return Proof(bound, trials, _best(bound, trials), bench.factors, (*doubts, *_remarks(bench)))


def _measure_uniform(bench: Workbench, bound: Bound) -> None:
    for form, proposal in bench.uniform(bound, UNIFORM):
        bench.measured(proposal, bound, "uniform", form)


def _next(bench: Workbench, bound: Bound) -> Proposal | None:
    """What is measured next, by scores that know the factors; None if it was measured already, or
    nothing keeps to a bound as tight."""
    found = bench.solved(bound)
    return None if found is None or bench.is_known(found) else found


def _tighter(solved: Bound, bound: Bound, missed: Trial) -> Bound:
    """The bound that is solved for next. solved: for what the solution was found that missed
    `bound`. A KL was missed from what was predicted, which may be far below what there might be."""
    if bound.measure == "kl":
        share = bound.most / missed.measured.kl
        return replace(solved, most=TIGHTER * share * min(solved.most, missed.predicted_kl))
    return replace(solved, most=TIGHTER * solved.most * missed.most / missed.size)


def _best(bound: Bound, trials: Sequence[Trial]) -> int | None:
    """The least KL within a size; of a bound of KL, the fewest bytes."""
    keeping = [number for number, trial in enumerate(trials) if trial.keeps]
    if bound.measure == "kl":
        return min(keeping, key=lambda number: trials[number].measured.nbytes, default=None)
    return min(keeping, key=lambda number: trials[number].measured.kl, default=None)


def _remarks(bench: Workbench) -> tuple[str, ...]:
    remarks = [
        f"{form} costs {number_text(factor, 2)} times what was predicted"
        for form, factor in sorted(bench.factors.items())
        if not 1 / NOTEWORTHY <= factor <= NOTEWORTHY
    ]
    return (*remarks, *(rare.sentence for rare in bench.scores.rare))

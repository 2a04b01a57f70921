"""Tuned recipes against one knob and the best uniform recipe of a single form, at equal file sizes.

For each share of the original file: what `ders_core.tune` chooses (`tuned`), the same with forms
alone that hardware decodes easily (`tuned, friendly`), one knob for all (`one knob`, as a budget in
a recipe gives, the largest file within the tuned one's bytes), the same without decomposition (`one
knob, no base`, of a settled budget), and the best uniform recipe: one codec for all deltas and one
for bases and other matrices, with the least predicted KL of all that fit. Each is packed and run:
bytes foretold and written, KL predicted and measured on held-out text in float32, with the interval
of 95 % over windows.

    python benchmarks/tuner.py WORK [--models demo universal many real-lm] [--effort] \
        [--shares 0.25 0.13 0.08] [--tokens 4096] > FILE

Before that, of each model: what it loses without any deltas. `--effort`: how long a tuning takes
beside a calibrated 4-bit compression, both made anew (run it twice: the first time compiles loops).
WORK keeps models, calibrations and scores. The real model needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tuner_effort import calibrated_for_tuning, effort
from tuner_models import MODELS
from unbiased_models import CALIBRATION_TOKENS
from versions import versions
from window_kl import WINDOW, Reference

from ders_core import compress, open_checkpoint
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Codec, Sparse
from ders_core.decompose.bases.none import NoBase
from ders_core.errors import RecipeError
from ders_core.pipeline.budget import settled, with_knob
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.recipe.budget import Budget
from ders_core.tune import Bound, Candidate, Scores, Solver, as_recipe, one_knob, score
from ders_core.tune.problem import Problem

SHARES = (0.25, 0.13, 0.08)


@dataclass(frozen=True)
class Trial:
    """nbytes, kl: as foretold."""

    name: str
    recipe: Recipe
    nbytes: int
    kl: float
    seconds: float = 0.0


def trials(
    scores: Scores, checkpoint: Checkpoint, calibration: Path, share: float
) -> Iterator[Trial]:
    """Of one size, those that there are."""
    for name, friendly in (("tuned", False), ("tuned, friendly", True)):
        solver = Solver(scores, "share", friendly=friendly)
        begun = time.perf_counter()
        try:
            found = solver.solve(Bound("share", share))
        except RecipeError:
            continue
        seconds = time.perf_counter() - begun
        recipe = as_recipe(found, checkpoint, calibration)
        yield Trial(name, recipe, found.nbytes, found.predicted_kl, seconds)
    most = share * scores.bytes_total
    rival = one_knob(scores, most)
    if rival is not None:
        empty = Recipe(name="knob", calibration=calibration)
        recipe = with_knob(empty, rival.knob, scores.unmeasured)
        yield Trial("one knob", recipe, rival.nbytes, rival.predicted_kl)
    yield from without_base(checkpoint, calibration, share)
    best = min(uniform(scores, calibration, most), key=lambda trial: trial.kl, default=None)
    if best is not None:
        yield best


def without_base(checkpoint: Checkpoint, calibration: Path, share: float) -> Iterator[Trial]:
    """One knob for all without decomposition: the experts' weights themselves are coded."""
    recipe = Recipe(name="plain", base=NoBase(), calibration=calibration, version=2)
    try:
        found = settled(recipe, Budget(share=share), checkpoint)
    except RecipeError:
        return
    if found.told is not None:
        told = found.told.bytes_after, found.told.predicted_kl or 0.0
        yield Trial("one knob, no base", found.recipe, *told)


def uniform(scores: Scores, calibration: Path, most: float) -> Iterator[Trial]:
    """One codec without a knob for all deltas, one for bases and other matrices, within a size."""
    problem = Problem.of(scores, "bytes", (), friendly=False)
    deltas, others = (_shared(scores, deltas=flag) for flag in (True, False))
    for first, second in product(deltas, others):
        chosen = [
            _of(scored.candidates, first if scored.unit.part == "deltas" else second)
            for scored in scores.units
        ]
        nbytes = sum(each.nbytes for each in chosen) + scores.bytes_beside
        if nbytes <= most:
            recipe = Recipe(
                name="uniform",
                calibration=calibration,
                rules=(Rule(codec=first),),
                base_codec=(BaseRule(codec=second),),
                base_error="shared",
                others=(OtherRule(codec=second),),
            )
            kl = scores.coupling.kl(problem.loss(chosen))
            yield Trial(f"uniform: {first.label} / {second.label}", recipe, nbytes, kl)


def _shared(scores: Scores, *, deltas: bool) -> list[Codec]:
    """Codecs that all units of deltas have, or all others, and that have no knob."""
    sets = [
        {candidate.codec for candidate in scored.candidates}
        for scored in scores.units
        if (scored.unit.part == "deltas") == deltas
    ]
    return sorted(
        (codec for codec in set.intersection(*sets) if codec.needs_of_calibration != "gradients"),
        key=lambda codec: codec.label,
    )


def _of(candidates: tuple[Candidate, ...], codec: Codec) -> Candidate:
    return next(candidate for candidate in candidates if candidate.codec == codec)


HEADER = (
    f"{'share':>6} {'recipe':60} {'MB told':>8} {'MB':>8} {'told KL':>9} {'KL':>9} "
    f"{'interval of 95 %':>21} {'ratio':>6} {'solve s':>7}"
)


def table(name: str, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    work: Path = options.work
    model = MODELS[name](work)
    original = open_checkpoint(model.moe)
    identity = original.identity
    predictions = work / "predictions" / f"{name}-{options.tokens}-{identity[:12]}"
    reference = Reference.of(model.moe, model.heldout_text, options.tokens, predictions)
    kept = work / "calibrations" / f"{name}-{identity[:12]}"
    begun = time.process_time()
    known = calibrated_for_tuning(model, kept / f"tuning-{CALIBRATION_TOKENS}.safetensors")
    calibrating, begun = time.process_time() - begun, time.process_time()
    scores = score(original, known.resolve(), directory=work / "scores")
    scoring = time.process_time() - begun
    print(f"\n## {name}: original {original.bytes_total / 1e6:.2f} MB, {len(scores.units)} units")
    print(
        f"{len(reference.windows)} windows of {WINDOW} tokens; calibrated in {calibrating:.0f} s "
        f"and scored in {scoring:.0f} s of processor time (0: taken from an earlier run)"
    )
    print(f"without any deltas: KL {_without_deltas(model.moe, reference):.4f} nats a token")
    if options.effort:
        print(effort(model), flush=True)
    print(HEADER, flush=True)
    for share in options.shares:
        for trial in trials(scores, original, known.resolve(), share):
            with tempfile.TemporaryDirectory() as place:
                report = compress(model.moe, Path(place) / "packed", trial.recipe)
                measured = reference.compare(Path(place) / "packed")
            low, high = measured.interval()
            print(
                f"{share:6.3f} {trial.name[:60]:60} {trial.nbytes / 1e6:8.3f} "
                f"{report.bytes_after / 1e6:8.3f} {trial.kl:9.6f} {measured.mean:9.6f} "
                f"{low:10.6f}-{high:.6f} {trial.kl / measured.mean:6.2f} {trial.seconds:7.3f}",
                flush=True,
            )


def _without_deltas(moe: Path, reference: Reference) -> float:
    """KL if every expert is the mean of its group."""
    nothing = Sparse(method="magnitude", drop_rate=1 - 1e-12)
    with tempfile.TemporaryDirectory() as place:
        compress(moe, Path(place) / "packed", Recipe(name="bases", rules=(Rule(codec=nothing),)))
        return reference.compare(Path(place) / "packed").mean


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["demo"])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--effort", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    for name in options.models:
        table(name, options)


if __name__ == "__main__":
    main()

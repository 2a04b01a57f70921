"""Repair: train what is small in a packed checkpoint, and keep the result if it is better."""

from __future__ import annotations

import gc
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.interval import Interval
from ders_core.evaluate.measured import Measured, figures
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import ReferenceStore, reference_store
from ders_core.files.inputs import check_inputs, unchanged_inputs
from ders_core.files.output import (
    STATE,
    check_room,
    new_target,
    output_directory,
    partial_path,
)
from ders_core.files.store import TensorStore
from ders_core.files.texts import Texts
from ders_core.hf.describe import ModelFacts
from ders_core.hf.silence import silent
from ders_core.packed.manifest import Repair
from ders_core.pipeline.quality import Quality
from ders_core.repair.measure import compare, keep_answers
from ders_core.repair.pace import chosen_rate
from ders_core.repair.result import NotBetter, RepairResult
from ders_core.repair.settings import RepairSettings
from ders_core.repair.student import Student
from ders_core.repair.trainer import RepairTrainer, Watch
from ders_core.repair.work import Work
from ders_core.repair.writing import (
    Rewritten,
    complete,
    output_bytes,
    write_descriptions,
    write_weights,
)
from ders_core.units import number_text
from ders_core.upcycle.checkpoints import Checkpoints, clear, find_checkpoints

CHECKPOINTS = ".training"
"""The folder of training checkpoints in an unfinished output."""


@unchanged_inputs()
def repair(
    packed: str | Path,
    original: str | Path,
    out: str | Path,
    *,
    text: Texts,
    heldout: Texts | None = None,
    settings: RepairSettings | None = None,
    device: str = "auto",
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> RepairResult:
    """Train what is small in the packed checkpoint at `packed` so that it says what `original` says
    of a text, and write it to the new directory `out`: packed as before, codes as they were, and
    every byte outside of what was trained the same; streams that get gains become longer.

    original: the checkpoint that was packed; another one is refused. text: as of
    `ders_core.evaluate.evaluate`. heldout: a text to measure with; without it, the last eighth of
    each path's windows, which are not trained on. The result is written only if it is better there:
    the interval of 95 % of the difference in KL must lie below 0. Both models are in memory in
    float32 at once. resume: go on from the newest whole training checkpoint of an interrupted
    repair with the same inputs and settings. progress counts steps.
    Raises RecipeError if nothing can be trained, CheckpointError if `original` is another one or a
    file is damaged or written meanwhile, EvaluationError for a text that cannot be used, too little
    memory, and a repair that is not better; then there is no `out`. An interrupted repair leaves
    its training checkpoints in `<out>.partial`.
    """
    started = time.monotonic()
    where, chosen = resolve_device(device), settings or RepairSettings()
    target = new_target(out, resume=resume)
    meter = Meter(chosen.steps, progress)
    work = Work.of(packed, original, text, heldout, chosen, where, trust_remote_code, meter.report)
    if not resume:
        check_room(target.parent, output_bytes(work.packed))
    folder = partial_path(target) / CHECKPOINTS
    found = find_checkpoints(folder) if resume else Checkpoints()
    resumed = found.sentence if resume and folder.is_dir() else ""
    meter.at(found.step, "reading the packed checkpoint")
    described = work.description(meter)
    needs = output_bytes(work.packed)
    with output_directory(target, work=described, resume=resume, needs=needs) as partial:
        folder.mkdir(exist_ok=True)
        clear(folder, found)
        if resumed:
            meter.report(resumed)
        try:
            outcome = _train_and_measure(work, partial, folder, found, meter)
        except NotBetter:
            _leave_nothing(partial)  # it would end so once more
            raise
        check_inputs()
        shutil.rmtree(folder)
        meter.finish("written")
        return outcome.result(work, target, resumed, time.monotonic() - started)


def _leave_nothing(partial: Path) -> None:
    """Remove what was written, so that nothing could be continued."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != STATE:
            path.unlink()


@dataclass(frozen=True)
class _Trained:
    """of_original, before: on the held-out windows. counts: word -> values that were trained."""

    of_original: Totals
    before: Measured
    counts: dict[str, int]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    """after: as it was written. bytes: of the weight files."""

    trained: _Trained
    after: Measured
    bytes: int

    def quality(self, measured: Measured, work: Work, seconds: float = 0.0) -> Quality:
        return Quality(
            **figures([measured], [self.trained.of_original]),
            dtype="float32",
            device=device_label(work.where),
            seconds=seconds,
        )

    @property
    def change(self) -> Interval:
        pairs = zip(self.after.kl, self.trained.before.kl, strict=True)
        return Interval.of([after - before for after, before in pairs])

    def result(self, work: Work, out: Path, resumed: str, seconds: float) -> RepairResult:
        return RepairResult(
            out=str(out),
            steps=work.settings.steps,
            tokens=work.tokens,
            trained=self.trained.counts,
            before=self.quality(self.trained.before, work),
            after=self.quality(self.after, work),
            kl_before=Interval.of(self.trained.before.kl),
            kl_after=Interval.of(self.after.kl),
            change=self.change,
            left_out=self.trained.left_out,
            repeated=work.texts.repeated,
            bytes=self.bytes,
            needed=work.memory.total,
            device=device_label(work.where),
            seconds=seconds,
            resumed=resumed,
        )


def _train_and_measure(
    work: Work, partial: Path, folder: Path, found: Checkpoints, meter: Meter
) -> _Outcome:
    """Train, write, and measure what was written. Raises NotBetter if it is not better."""
    heldout, batch = work.texts.heldout, work.settings.batch
    predicted = heldout.shape[1] // (2 if work.facts.encoder_decoder else 1) - 1
    tokens = len(heldout) * predicted
    with reference_store(tokens, _vocabulary(work.facts)) as store:
        trained = _train(work, partial, folder, found, store, meter)
        gc.collect()
        with _model(partial, work) as network:
            after = compare(network, heldout, batch, store, "the repaired model", meter.report)
    outcome = _Outcome(trained, after, TensorStore.open(partial).bytes_total)
    _check_better(outcome, work)
    figures = {
        "kl_before": float(f"{trained.before.mean:.6g}"),
        "kl_after": float(f"{after.mean:.6g}"),
    }
    complete(partial, work.original, figures, outcome.quality(after, work), meter.report)
    return outcome


def _train(
    work: Work,
    partial: Path,
    folder: Path,
    found: Checkpoints,
    store: ReferenceStore,
    meter: Meter,
) -> _Trained:
    """Both models are in memory, and nothing of them when it is done."""
    heldout, batch = work.texts.heldout, work.settings.batch
    with _model(work.original.path, work) as teacher, _model(work.packed.path, work) as network:
        meter.report("measuring the original")
        of_original = keep_answers(teacher, heldout, batch, store, meter.report)
        before = compare(network, heldout, batch, store, "the packed model", meter.report)
        meter.report("finding what is trained in the model")
        placed = work.placed(teacher, network)
        student = Student(network, placed)
        rate = chosen_rate(student, work.settings, heldout, store, before, meter.report)
        _fit(student, teacher, work, rate, folder, found, meter)
        changes = [change for unit in placed.units for change in unit.changes()]
    rewritten = write_weights(partial, work.packed, changes, meter.report)
    counts = Counter[str]()
    for leaf in placed.leaves:
        counts[leaf.kind] += leaf.start.numel()
    _write_beside(partial, work, rewritten, counts)
    return _Trained(of_original, before, dict(counts), tuple(placed.left_out))


def _model(path: Path, work: Work) -> Any:
    return loaded(path, work.where.type, torch.float32, work.trust)


def _vocabulary(facts: ModelFacts) -> int:
    if facts.vocabulary is None:
        raise EvaluationError(
            f"the config of {facts.path} does not say how many tokens it knows, so it cannot be "
            "measured"
        )
    return facts.vocabulary


def _fit(
    student: Student,
    teacher: PreTrainedModel,
    work: Work,
    rate: float,
    folder: Path,
    found: Checkpoints,
    meter: Meter,
) -> None:
    """Raises Cancelled, with a checkpoint written once there was a step, if the meter does."""
    settings = work.settings
    with silent():
        trainer = RepairTrainer(
            student, teacher, work.texts.training, settings, rate, folder, work.where.type
        )
        last = None if found.newest is None else str(found.newest)
        if last and found.step >= settings.steps:  # only the writing was interrupted
            trainer._load_from_checkpoint(last)
        else:
            watch = Watch(meter)
            trainer.add_callback(watch)
            meter.report(f"computing the first step, at a rate of {number_text(rate)}")
            trainer.train(resume_from_checkpoint=last)
            if watch.stopped is not None:
                raise watch.stopped
    for leaf in student.leaves:
        if not bool(torch.isfinite(leaf.stored()).all()):
            raise NotBetter(
                f"the repair made values of {leaf.name} that cannot be stored; give a lower rate"
            )


def _write_beside(partial: Path, work: Work, rewritten: Rewritten, counts: Counter[str]) -> None:
    texts, heldout = work.names
    note = Repair(
        trained=dict(counts),
        steps=work.settings.steps,
        texts=texts,
        heldout=heldout,
        tokens=work.tokens,
        heldout_tokens=work.texts.heldout.numel(),
        kl_before=0.0,
        kl_after=0.0,
    )
    write_descriptions(partial, work.packed, rewritten, note)


def _check_better(outcome: _Outcome, work: Work) -> None:
    """Raise NotBetter unless KL is lower, beyond chance."""
    change = outcome.change
    if change.high < 0:
        return
    before, after = outcome.trained.before.mean, outcome.after.mean
    raise NotBetter(
        f"the repair was not kept: on {work.texts.heldout.numel()} tokens that it did not train "
        f"on, KL was {number_text(before, 4)} before and {number_text(after, 4)} after, and the "
        f"difference lies between {number_text(change.low, 2)} and {number_text(change.high, 2)}; "
        "give more text, a lower rate or fewer steps, or keep the packed checkpoint as it is"
    )

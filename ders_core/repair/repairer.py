"""Repair: train what is small in a packed checkpoint, and keep the result if it is better."""

from __future__ import annotations

import gc
import hashlib
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ders_core.checkpoint import Checkpoint
from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.progress import Meter, Progress, Tell, quiet
from ders_core.errors import CheckpointError, EvaluationError, RecipeError
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import reference_store
from ders_core.files.address import is_remote
from ders_core.files.inputs import check_inputs, unchanged_inputs
from ders_core.files.output import (
    STATE,
    check_room,
    new_target,
    output_directory,
    partial_path,
)
from ders_core.files.store import TensorStore
from ders_core.files.texts import Texts, as_paths
from ders_core.hf.describe import ModelFacts, describe, load_config
from ders_core.hf.silence import silent
from ders_core.packed.manifest import Repair
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.quality import Quality
from ders_core.repair.collect import Collected, Placed, collect, place
from ders_core.repair.measure import Interval, Measured, compare, keep_answers
from ders_core.repair.memory import Needed, check_memory, needed
from ders_core.repair.places import locate
from ders_core.repair.result import RepairResult
from ders_core.repair.settings import RepairSettings
from ders_core.repair.student import Student
from ders_core.repair.text import RepairText, read_windows
from ders_core.repair.trainer import RepairTrainer, Watch
from ders_core.repair.writing import complete, output_bytes, write_descriptions, write_weights
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
    every byte outside of what was trained the same.

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
    work = _Work.of(packed, original, text, heldout, chosen, where, trust_remote_code, meter.report)
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
            trained = _train_and_measure(work, partial, folder, found, meter)
        except EvaluationError:
            _leave_nothing(partial)  # it would end so once more
            raise
        check_inputs()
        shutil.rmtree(folder)
        meter.finish("written")
        return trained.result(work, target, resumed, time.monotonic() - started)


def _leave_nothing(partial: Path) -> None:
    """Remove what was written, so that nothing could be continued."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != STATE:
            path.unlink()


@dataclass(frozen=True)
class _Work:
    """What a repair has to do, as far as it is known before a weight is read."""

    packed: PackedCheckpoint
    stands_for: Checkpoint
    """The packed checkpoint as its original."""
    original: Checkpoint
    facts: ModelFacts
    texts: RepairText
    names: tuple[tuple[str, ...], tuple[str, ...]]
    """Of the texts and of the held-out ones."""
    settings: RepairSettings
    where: torch.device
    collected: Collected
    memory: Needed
    trust: bool

    @classmethod
    def of(
        cls,
        packed: str | Path,
        original: str | Path,
        text: Texts,
        heldout: Texts | None,
        settings: RepairSettings,
        where: torch.device,
        trust: bool,
        tell: Tell,
    ) -> _Work:
        """Opens and refuses."""
        checkpoint, teacher = PackedCheckpoint(packed), open_checkpoint(original)
        if is_remote(teacher.path):
            raise CheckpointError(
                f"{teacher.path} is not on this machine, and a repair runs it; download it first"
            )
        wanted = checkpoint.manifest.source.identity
        if teacher.identity != wanted:
            raise CheckpointError(
                f"{checkpoint.path} was packed from another checkpoint than {teacher.path} "
                f"(identity {wanted[:16]}, not {teacher.identity[:16]}); give the one that was "
                "packed"
            )
        facts = describe(teacher.path, trust_remote_code=trust)
        texts = read_windows(facts, text, heldout, settings, trust)
        tell("checking the packed checkpoint")
        problems = checkpoint.checksum_problems(lambda _, message: tell(message))
        if problems:
            raise CheckpointError(f"{checkpoint.path}: {problems[0]}; copy the directory again")
        stands_for = open_checkpoint(checkpoint.path)
        collected = collect(checkpoint, stands_for, settings.train, where)
        trained = sum(leaf.start.numel() for leaf in collected.leaves)
        if not trained:
            raise RecipeError(
                f"{checkpoint.path} holds nothing of {', '.join(settings.train)} that could be "
                "trained; choose other parts with --train, or keep it as it is"
            )
        memory = needed(
            facts,
            load_config(TensorStore.open(teacher.path), trust_remote_code=trust),
            [each.stack.stacked for each in (*collected.groups, *collected.others)],
            trained,
            texts.training.shape[1],
            settings,
        )
        check_memory(memory, where)
        names = (_names(text), () if heldout is None else _names(heldout))
        return cls(
            checkpoint,
            stands_for,
            teacher,
            facts,
            texts,
            names,
            settings,
            where,
            collected,
            memory,
            trust,
        )

    def description(self, meter: Meter) -> dict[str, Any]:
        """What tells this repair from others, as JSON."""
        return {
            "packed": self.packed.store.content(lambda _, message: meter.report(message)),
            "original": self.original.identity,
            "settings": self.settings.model_dump(mode="json"),
            "texts": [_digest(self.texts.training), _digest(self.texts.heldout)],
            "device": self.where.type,
        }

    @property
    def tokens(self) -> int:
        settings = self.settings
        return settings.steps * settings.batch * self.texts.training.shape[1]


@dataclass(frozen=True)
class _Trained:
    """of_original: on the held-out windows. trained: word -> values."""

    of_original: Totals
    before: Measured
    after: Measured
    trained: dict[str, int]
    left_out: tuple[str, ...]

    def quality(self, measured: Measured, work: _Work, seconds: float = 0.0) -> Quality:
        totals = measured.totals
        return Quality(
            tokens=totals.tokens,
            perplexity=totals.perplexity,
            reference_perplexity=self.of_original.perplexity,
            kl=totals.kl / totals.tokens,
            top1_agreement=totals.same_top / totals.tokens,
            routing_agreement=totals.routing_agreement,
            dtype="float32",
            device=device_label(work.where),
            seconds=seconds,
        )

    @property
    def change(self) -> Interval:
        pairs = zip(self.after.kl, self.before.kl, strict=True)
        return Interval.of([after - before for after, before in pairs])

    def result(self, work: _Work, out: Path, resumed: str, seconds: float) -> RepairResult:
        return RepairResult(
            out=str(out),
            steps=work.settings.steps,
            tokens=work.tokens,
            trained=self.trained,
            before=self.quality(self.before, work),
            after=self.quality(self.after, work),
            kl_before=Interval.of(self.before.kl),
            kl_after=Interval.of(self.after.kl),
            change=self.change,
            left_out=self.left_out,
            repeated=work.texts.repeated,
            bytes=work.packed.bytes_total,
            needed=work.memory.total,
            device=device_label(work.where),
            seconds=seconds,
            resumed=resumed,
        )


def _train_and_measure(
    work: _Work, partial: Path, folder: Path, found: Checkpoints, meter: Meter
) -> _Trained:
    """Train, write, and measure what was written. Raises EvaluationError if it is not better."""
    heldout, batch = work.texts.heldout, work.settings.batch
    predicted = heldout.shape[1] // (2 if work.facts.encoder_decoder else 1) - 1
    tokens = len(heldout) * predicted
    with reference_store(tokens, _vocabulary(work.facts)) as store:
        with _model(work.original.path, work) as teacher:
            meter.report("measuring the original")
            of_original = keep_answers(teacher, heldout, batch, store, meter.report)
            with _model(work.packed.path, work) as network:
                before = compare(network, heldout, batch, store, "the packed model", meter.report)
                meter.report("finding what is trained in the model")
                placed = _placed(work, network)
                student = Student(network, placed)
                _train(student, teacher, work, folder, found, meter)
                changes = [change for unit in placed.units for change in unit.changes()]
                checksums = write_weights(partial, work.packed, changes, meter.report)
        gc.collect()
        counts = Counter[str]()
        for leaf in placed.leaves:
            counts[leaf.kind] += leaf.start.numel()
        _write_beside(partial, work, checksums, counts)
        with _model(partial, work) as network:
            after = compare(network, heldout, batch, store, "the repaired model", meter.report)
    trained = _Trained(of_original, before, after, dict(counts), tuple(placed.left_out))
    _check_better(trained, work)
    figures = {
        "kl_before": float(f"{before.mean:.6g}"),
        "kl_after": float(f"{after.mean:.6g}"),
    }
    quality = trained.quality(after, work)
    complete(partial, work.original, figures, quality, meter.report)
    return trained


def _model(path: Path, work: _Work) -> Any:
    return loaded(path, work.where.type, torch.float32, work.trust)


def _vocabulary(facts: ModelFacts) -> int:
    if facts.vocabulary is None:
        raise EvaluationError(
            f"the config of {facts.path} does not say how many tokens it knows, so it cannot be "
            "measured"
        )
    return facts.vocabulary


def _placed(work: _Work, network: PreTrainedModel) -> Placed:
    collected = work.collected
    located = locate(
        network,
        work.stands_for,
        collected.layers,
        collected.coded | collected.matrices,
        collected.plain.keys() - collected.matrices,
    )
    placed = place(collected, located)
    if not placed.leaves:
        raise EvaluationError(
            f"nothing of {', '.join(work.settings.train)} was found in the model that transformers "
            f"makes of {work.packed.path} ({placed.left_out[0]}); choose other parts with --train"
        )
    return placed


def _train(
    student: Student,
    teacher: PreTrainedModel,
    work: _Work,
    folder: Path,
    found: Checkpoints,
    meter: Meter,
) -> None:
    """Raises Cancelled, with a checkpoint written once there was a step, if the meter does."""
    settings = work.settings
    with silent():
        trainer = RepairTrainer(
            student, teacher, work.texts.training, settings, folder, work.where.type
        )
        last = None if found.newest is None else str(found.newest)
        if last and found.step >= settings.steps:  # only the writing was interrupted
            trainer._load_from_checkpoint(last)
        else:
            watch = Watch(meter)
            trainer.add_callback(watch)
            meter.report("computing the first step")
            trainer.train(resume_from_checkpoint=last)
            if watch.stopped is not None:
                raise watch.stopped
    for leaf in student.leaves:
        if not bool(torch.isfinite(leaf.stored()).all()):
            raise EvaluationError(
                f"the repair made values of {leaf.name} that cannot be stored; give a lower rate"
            )


def _write_beside(
    partial: Path, work: _Work, checksums: dict[str, str], counts: Counter[str]
) -> None:
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
    write_descriptions(partial, work.packed, checksums, note)


def _check_better(trained: _Trained, work: _Work) -> None:
    """Raise EvaluationError unless KL is lower, beyond chance."""
    change = trained.change
    if change.high < 0:
        return
    before, after = trained.before.mean, trained.after.mean
    raise EvaluationError(
        f"the repair was not kept: on {work.texts.heldout.numel()} tokens that it did not train "
        f"on, KL was {before:.4g} before and {after:.4g} after, and the difference lies between "
        f"{change.low:.2g} and {change.high:.2g}; give more text, a lower rate or fewer steps, or "
        "keep the packed checkpoint as it is"
    )


def _names(texts: Texts) -> tuple[str, ...]:
    return tuple(path.name for path in as_paths(texts))


def _digest(windows: torch.Tensor) -> str:
    return hashlib.sha256(windows.numpy().tobytes()).hexdigest()

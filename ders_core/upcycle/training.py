"""A training, from its first step or from where it was stopped."""

from __future__ import annotations

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from ders_core.compute.progress import Progress
from ders_core.upcycle.callbacks import DeltaSteps, Measure, RunCallback
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.history import HistoryWriter
from ders_core.upcycle.trainer import UpcyclingTrainer


def train(
    trainer: UpcyclingTrainer,
    config: UpcycleConfig,
    history_file: Path | None,
    progress: Progress,
    measure: Measure | None,
) -> None:
    """Train, from the last checkpoint in the trainer's directory if there is one.

    history_file: None in the other processes of a distributed training; they measure nothing.
    Raises Cancelled, with a checkpoint written, if `progress` does.
    """
    last = get_last_checkpoint(trainer.args.output_dir)
    done = int(last.rpartition("-")[2]) if last else 0
    if last and done >= config.training.steps:  # only the writing was interrupted
        trainer._load_from_checkpoint(last)
        return
    trainer.add_callback(DeltaSteps(trainer))
    if history_file is None:
        trainer.train(resume_from_checkpoint=last)
        return
    history = HistoryWriter(history_file, done)
    callback = RunCallback(trainer, history, progress, measure, config.training.measure_every)
    trainer.add_callback(callback)
    if not done:
        callback.measure(0)
    trainer.train(resume_from_checkpoint=last)
    if callback.stopped is not None:
        raise callback.stopped
    callback.measure(config.training.steps)

"""A training, from its first step or from where it was stopped."""

from __future__ import annotations

from pathlib import Path

import torch

from ders_core.compute.device import device_label
from ders_core.compute.precision import multiplies
from ders_core.compute.progress import Meter
from ders_core.upcycle.callbacks import DeltaSteps, Measure, RunCallback
from ders_core.upcycle.checkpoints import Checkpoints
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.history import HistoryWriter
from ders_core.upcycle.trainer import UpcyclingTrainer


def computable(config: UpcycleConfig, where: torch.device) -> tuple[UpcycleConfig, str]:
    """The configuration as it is trained on a device, and its dtype of computation in words.

    `bf16` is overridden where the device has no instructions for it: products in bfloat16 take many
    times as long there as in float32. What is not trained then takes 4 bytes a value, not 2.
    """
    if not config.training.bf16:
        return config, "float32"
    if multiplies(torch.bfloat16, where):
        return config, "bfloat16"
    training = config.training.model_copy(update={"bf16": False})
    return (
        config.model_copy(update={"training": training}),
        f"float32 and not bfloat16, for which {device_label(where)} has no instructions",
    )


def train(
    trainer: UpcyclingTrainer,
    config: UpcycleConfig,
    found: Checkpoints,
    history_file: Path | None,
    meter: Meter,
    measure: Measure | None,
) -> None:
    """Train, from a whole training checkpoint or from the first step.

    found: the training checkpoints. history_file: None in the other processes of a distributed
    training; they measure nothing. meter: counts steps. Raises Cancelled, with a checkpoint written
    once there was a step, if it does; OutputError if a checkpoint or the history cannot be written.
    """
    last = None if found.newest is None else str(found.newest)
    done = found.step
    if last and done >= config.training.steps:  # only the writing was interrupted
        trainer._load_from_checkpoint(last)
        return
    trainer.add_callback(DeltaSteps(trainer))
    if history_file is None:
        trainer.train(resume_from_checkpoint=last)
        return
    history = HistoryWriter(history_file, done)
    callback = RunCallback(trainer, history, meter, measure, config.training.measure_every)
    trainer.add_callback(callback)
    if not done:
        callback.measure(0, meter.report)
    meter.report("computing the first step")
    trainer.train(resume_from_checkpoint=last)
    if callback.stopped is not None:
        raise callback.stopped
    callback.measure(config.training.steps)

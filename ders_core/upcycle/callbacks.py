"""What happens between the steps of a training: history, progress, stopping, learning positions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ders_core.compute.progress import Meter, Tell, untold
from ders_core.errors import Cancelled
from ders_core.upcycle.data import Windows
from ders_core.upcycle.delta import Delta
from ders_core.upcycle.history import HistoryWriter, Measured, Moment
from ders_core.upcycle.moe_block import UpcycledFFN, expert_linears
from ders_core.upcycle.trainer import UpcyclingTrainer

Measure = Callable[[PreTrainedModel, Tell], float]
"""`measure(model, tell)` is the model's perplexity on the held-out text; `tell` is called with a
message after each window."""


class RunCallback(TrainerCallback):
    """Writes the history, reports progress, and stops the training when the meter raises."""

    def __init__(
        self,
        trainer: UpcyclingTrainer,
        history: HistoryWriter,
        meter: Meter,
        measure: Measure | None,
        every: int,
    ) -> None:
        self._trainer, self._history, self._meter = trainer, history, meter
        self._measure, self._every = measure, every
        self._time = time.monotonic()
        self._tokens = 0
        self.stopped: Cancelled | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if self._measure and self._every and state.global_step % self._every == 0:
            self.measure(state.global_step)

    def measure(self, step: int, tell: Tell = untold) -> None:
        """Measure the model as it is now, unless that was done before this step."""
        if self._measure is None or self._history.has_measured(step):
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        before = model.training
        model.eval()
        self._history.add_measurement(Measured(step, self._measure(model, tell)))
        model.train(before)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        """After each step. A training that is to stop saves a checkpoint first."""
        if not logs or "loss" not in logs:
            return
        trainer, now = self._trainer, time.monotonic()
        balance = sum(trainer.balances) / max(len(trainer.balances), 1)
        tokens = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = trainer.train_dataset
        assert isinstance(rows, Windows)
        moment = Moment(
            step=state.global_step,
            loss=logs["loss"] - trainer.weight * balance,
            balance=balance,
            rate=logs["learning_rate"],
            gradient_norm=logs.get("grad_norm", math.nan),
            tokens_per_second=tokens * rows.tokens.shape[1] / max(now - self._time, 1e-9),
            memory=memory(args.device),
            loads={layer: _shares(block) for layer, block in trainer.blocks.items()},
        )
        trainer.balances.clear()
        self._time = now
        self._history.add_step(moment)
        try:
            message = f"step {moment.step} of {args.max_steps}, loss {moment.loss:.3f}"
            self._meter.at(moment.step, message)
        except Cancelled as cancelled:
            self.stopped = cancelled
            control.should_save = control.should_training_stop = True


class DeltaSteps(TrainerCallback):
    """Notifies the deltas of the begin and end of a step: forms may learn more than parameters."""

    def __init__(self, trainer: UpcyclingTrainer) -> None:
        self._trainer = trainer
        linears = expert_linears(trainer.blocks)
        self._deltas: list[Delta] = [delta for *_, linear in linears for delta in linear.sets()]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        for delta in self._deltas:
            delta.before_step(state.global_step + 1, args.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        for delta in self._deltas:
            delta.after_step(self._moments)

    def _moments(self, parameter: nn.Parameter) -> list[torch.Tensor]:
        """AdamW's two moments of a parameter; none before its first step."""
        optimizer: Any = self._trainer.optimizer
        state = getattr(optimizer, "optimizer", optimizer).state.get(parameter, {})
        return [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]


def _shares(block: UpcycledFFN) -> tuple[float, ...]:
    """Each expert's share of the choices since the last call."""
    loads = block.loads / block.loads.sum().clamp_min(1)
    block.loads.zero_()
    return tuple(round(share, 6) for share in loads.tolist())


def memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of tensors, on a CPU the resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)

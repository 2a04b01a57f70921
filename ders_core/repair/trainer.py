"""The Hugging Face `Trainer` of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ders_core.compute.progress import Meter
from ders_core.errors import Cancelled
from ders_core.repair.divergence import mean_divergence
from ders_core.repair.pace import sizes
from ders_core.repair.result import NotBetter
from ders_core.repair.settings import RepairSettings
from ders_core.repair.student import Student, predictions
from ders_core.repair.tuned import Leaf
from ders_core.units import number_text
from ders_core.upcycle.whole_trainer import WholeTrainer, arguments_in, collate

KEPT = 2
"""Training checkpoints that are kept."""


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Windows of tokens `[n, window]`."""

    def __init__(self, windows: torch.Tensor) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._windows[index]}


def parameter_groups(leaves: Sequence[Leaf], rate: float) -> list[dict[str, Any]]:
    """Each tensor with a learning rate of `rate` times its size."""
    groups: dict[float, list[nn.Parameter]] = {}
    for leaf, size in sizes(leaves):
        groups.setdefault(size, []).append(leaf.parameter)
    return [{"params": each, "lr": rate * size} for size, each in sorted(groups.items())]


class RepairTrainer(WholeTrainer):
    """Minimises KL(original ‖ repaired) on windows of a text."""

    def __init__(
        self,
        student: Student,
        teacher: PreTrainedModel,
        windows: torch.Tensor,
        settings: RepairSettings,
        rate: float,
        directory: Path,
        device: str,
    ) -> None:
        """rate: as of `parameter_groups`."""
        self._teacher = teacher
        groups = parameter_groups(student.leaves, rate)
        super().__init__(
            model=student,
            args=_arguments(settings, rate, directory, device),
            train_dataset=Rows(windows),
            data_collator=collate,
            optimizers=(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0), None),
        )
        self.remove_callback(PrinterCallback)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        student: Student = self.accelerator.unwrap_model(model)
        student.write()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise NotBetter(
                f"the repair diverged at step {self.state.global_step + 1}: its loss is not "
                "finite; give a lower rate"
            )
        student.pull()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        rows = inputs["input_ids"]
        with torch.no_grad():
            wanted = predictions(self._teacher, rows)
        said = model(rows)
        loss = mean_divergence(said, wanted)
        return (loss, said) if return_outputs else loss

    def kept(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        return dict(model.named_parameters())


class Watch(TrainerCallback):
    """Reports progress, and stops the training when the meter raises, with a checkpoint saved."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.stopped: Cancelled | None = None
        self.losses: dict[int, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses[state.global_step] = logs["loss"]
        try:
            message = (
                f"step {state.global_step} of {args.max_steps}, KL {number_text(logs['loss'], 4)}"
            )
            self._meter.at(state.global_step, message)
        except Cancelled as cancelled:
            self.stopped = cancelled
            control.should_save = control.should_training_stop = True


def _arguments(
    settings: RepairSettings, rate: float, directory: Path, device: str
) -> TrainingArguments:
    return arguments_in(
        directory,
        device,
        settings.seed,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.steps // 20, 20),
        max_grad_norm=0.0,  # Adam does not care how large gradients are
        save_steps=settings.save_every,
        save_total_limit=KEPT,
    )

"""Training by the Hugging Face `Trainer`: what it is told, and what it is asked to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from ders_core.compute.progress import Progress
from ders_core.errors import Cancelled, OutputError
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.delta import Delta
from ders_core.upcycle.experts import ExpertLinear
from ders_core.upcycle.history import History, Measured, Moment
from ders_core.upcycle.moe_block import UpcycledFFN

TRAINED = "trained.safetensors"
"""In a training checkpoint: what is trained, and learned positions; the rest is the dense model."""

Blocks = Mapping[int, UpcycledFFN]
Measure = Callable[[], float]
"""The perplexity of the model as it stands on the held-out text."""


def arguments(config: UpcycleConfig, directory: Path, device: str) -> TrainingArguments:
    """What the `Trainer` is told."""
    own = config.training
    told = TrainingArguments(
        output_dir=str(directory),
        max_steps=own.steps,
        per_device_train_batch_size=own.batch,
        gradient_accumulation_steps=own.accumulation,
        learning_rate=own.learning_rate,
        lr_scheduler_type=own.schedule if own.schedule != "constant" else "constant_with_warmup",
        warmup_steps=own.warmup,
        weight_decay=own.weight_decay,
        max_grad_norm=own.clip,
        bf16=own.bf16,
        activation_checkpointing=own.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        save_steps=own.save_every,
        save_total_limit=own.keep,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    told._n_gpu = min(told.n_gpu, 1)  # a process has one GPU; several want torchrun
    return told


def parameter_groups(
    model: nn.Module, blocks: Blocks, config: UpcycleConfig
) -> list[dict[str, Any]]:
    """What is trained, the deltas first, each with its learning rate. Biases do not decay."""
    own = config.training
    rate = own.learning_rate
    bases = [linear.base for _, _, linear in _linears(blocks) if linear.base is not None]
    routers = [p for block in blocks.values() for p in (block.router, block.universal)]
    rates = {id(base): own.base_rate for base in bases} | {
        id(router): own.router_rate for router in routers if router is not None
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(rate, own.weight_decay): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chosen = rates.get(id(parameter))
            decays = parameter.dim() > 1 and not name.endswith("bias")
            decay = own.weight_decay if decays else 0.0
            key = (rate if chosen is None else chosen, decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": found, "lr": lr, "weight_decay": decay}
        for (lr, decay), found in groups.items()
        if found
    ]


class UpcyclingTrainer(Trainer):
    """Adds the routers' balance to the loss; keeps only what is trained."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Blocks,
        config: UpcycleConfig,
        windows: Windows,
        directory: Path,
        device: str,
    ) -> None:
        self.blocks, self.weight = blocks, config.router.balance
        self.balances: list[float] = []
        optimizer = torch.optim.AdamW(parameter_groups(model, blocks, config))
        super().__init__(
            model=model,
            args=arguments(config, directory, device),
            train_dataset=windows,
            data_collator=_stacked,
            optimizers=(optimizer, None),
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy and `balance` times the mean of the routers' balances."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        balance = torch.stack([block.balance for block in self.blocks.values()]).mean()
        self.balances.append(float(balance.detach()))
        scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        share = self.current_gradient_accumulation_steps if scaled else 1
        loss = loss + self.weight * balance / share
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        tensors = {
            name: tensor.detach().contiguous() for name, tensor in kept(model, self.blocks).items()
        }
        save_file(tensors, directory / TRAINED)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        stored = load_file(Path(resume_from_checkpoint) / TRAINED)
        tensors = kept(self.accelerator.unwrap_model(self.model), self.blocks)
        if stored.keys() != tensors.keys():
            raise OutputError(
                f"{resume_from_checkpoint} was written by a training of other parameters; remove it"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(stored[name])


def kept(model: nn.Module, blocks: Blocks) -> dict[str, torch.Tensor]:
    """What a training checkpoint holds of the model: what is trained, and the deltas' buffers, such
    as learned positions."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    held = {id(buffer) for *_, linear in _linears(blocks) for buffer in linear.deltas.buffers()}
    return trained | {name: each for name, each in model.named_buffers() if id(each) in held}


def _stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _linears(blocks: Blocks) -> list[tuple[int, str, ExpertLinear]]:
    """(layer, projection, its experts)"""
    return [
        (layer, name, linear)
        for layer, block in blocks.items()
        for name, linear in block.projections.items()
    ]


class Watch(TrainerCallback):
    """Writes the history, tells the progress, and stops the training when it is asked to."""

    def __init__(
        self,
        trainer: UpcyclingTrainer,
        history: History,
        progress: Progress,
        measure: Measure | None,
        every: int,
    ) -> None:
        self._trainer, self._history, self._progress = trainer, history, progress
        self._measure, self._every = measure, every
        self._time = time.monotonic()
        self._tokens = 0
        self.stopped: Cancelled | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if self._measure and self._every and state.global_step % self._every == 0:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        if self._measure is None or self._history.has_measured(step):
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        before = model.training
        model.eval()
        self._history.add(Measured(step, self._measure()))
        model.train(before)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        """After each step. A training that is asked to stop saves itself first."""
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
        self._history.add(moment)
        try:
            message = f"step {moment.step} of {args.max_steps}, loss {moment.loss:.3f}"
            self._progress(moment.step, args.max_steps, message)
        except Cancelled as cancelled:
            self.stopped = cancelled
            control.should_save = control.should_training_stop = True


class DeltaSteps(TrainerCallback):
    """Tells the deltas when a step begins and ends: some learn more than their parameters."""

    def __init__(self, trainer: UpcyclingTrainer) -> None:
        self._trainer = trainer
        linears = _linears(trainer.blocks)
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
    """Bytes: on a GPU the most that tensors took, on a CPU what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def train(
    trainer: UpcyclingTrainer,
    config: UpcycleConfig,
    history_file: Path | None,
    progress: Progress,
    measure: Measure | None,
) -> None:
    """Train, from the last checkpoint in the trainer's directory if there is one.

    history_file: None in processes that only compute along; they measure nothing either.
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
    history = History(history_file, done)
    watch = Watch(trainer, history, progress, measure, config.training.measure_every)
    trainer.add_callback(watch)
    if not done:
        watch.measure(0)
    trainer.train(resume_from_checkpoint=last)
    if watch.stopped is not None:
        raise watch.stopped
    watch.measure(config.training.steps)

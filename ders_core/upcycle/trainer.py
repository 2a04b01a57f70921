"""The Hugging Face `Trainer` of an upcycling: arguments, loss, contents of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.moe_block import Blocks, expert_linears
from ders_core.upcycle.whole_trainer import WholeTrainer, arguments_in, collate

SCHEDULERS = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
}
"""`training.schedule` -> transformers' name."""


def arguments(config: UpcycleConfig, directory: Path, device: str) -> TrainingArguments:
    """The arguments of the `Trainer`."""
    training = config.training
    return arguments_in(
        directory,
        device,
        config.seed,
        max_steps=training.steps,
        per_device_train_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULERS[training.schedule],
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        bf16=training.bf16,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        save_steps=training.save_every,
        save_total_limit=training.keep,
        ddp_find_unused_parameters=False,
    )


def parameter_groups(
    model: nn.Module, blocks: Blocks, config: UpcycleConfig
) -> list[dict[str, Any]]:
    """The optimizer's groups of what is trained, the deltas first, each group with its learning
    rate. Biases do not decay."""
    training = config.training
    rate = training.learning_rate
    bases = [linear.base for _, _, linear in expert_linears(blocks) if linear.base is not None]
    routers = [p for block in blocks.values() for p in (block.router, block.universal)]
    rates = {id(base): training.base_rate for base in bases} | {
        id(router): training.router_rate for router in routers if router is not None
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(rate, training.weight_decay): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chosen = rates.get(id(parameter))
            decays = parameter.dim() > 1 and not name.endswith("bias")
            decay = training.weight_decay if decays else 0.0
            key = (rate if chosen is None else chosen, decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
        if parameters
    ]


class UpcyclingTrainer(WholeTrainer):
    """Adds the routers' balance to the loss."""

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
            data_collator=collate,
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

    def kept(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return kept(model, self.blocks)


def kept(model: nn.Module, blocks: Blocks) -> dict[str, torch.Tensor]:
    """What a training checkpoint holds of the model: what is trained, and the deltas' buffers, such
    as learned positions."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    linears = [linear for *_, linear in expert_linears(blocks)]
    held = {id(buffer) for linear in linears for buffer in linear.deltas.buffers()}
    return trained | {name: each for name, each in model.named_buffers() if id(each) in held}

"""A `Trainer` whose checkpoints appear whole or not at all, and hold what is trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from ders_core.errors import OutputError
from ders_core.upcycle.checkpoints import TRAINED, begin, publish, writing


class WholeTrainer(Trainer):
    """See `ders_core.upcycle.checkpoints`; a subclass says what is kept."""

    _aside: Path | None = None

    @abstractmethod
    def kept(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """What a training checkpoint holds of the model, by name."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, first = Path(self.args.output_dir), self.args.should_save
        if first:
            begin(folder)
        self.accelerator.wait_for_everyone()
        with writing(folder) as self._aside:
            super()._save_checkpoint(model, trial)
        self._aside = None
        self.accelerator.wait_for_everyone()
        if first:
            publish(folder, self.state.global_step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        """Where the `Trainer` makes a checkpoint."""
        return str(self._aside or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(exist_ok=True)
        kept = self.kept(self.accelerator.unwrap_model(self.model))
        tensors = {name: tensor.detach().contiguous() for name, tensor in kept.items()}
        save_file(tensors, directory / TRAINED)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        stored = load_file(Path(resume_from_checkpoint) / TRAINED)
        tensors = self.kept(self.accelerator.unwrap_model(self.model))
        if stored.keys() != tensors.keys():
            raise OutputError(
                f"{resume_from_checkpoint} was written by a training of other parameters; remove it"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(stored[name])


def arguments_in(directory: Path, device: str, seed: int, **fields: Any) -> TrainingArguments:
    """Of a training in this process and on this device, which tells each step and no service.
    fields: all others."""
    made = TrainingArguments(
        output_dir=str(directory),
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        **fields,
    )
    made._n_gpu = min(made.n_gpu, 1)  # a process has one GPU; several need torchrun
    return made


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

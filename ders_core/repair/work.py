"""What a repair has to do: opened, checked and refused before a weight is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Meter, Tell
from ders_core.errors import CheckpointError, EvaluationError, RecipeError
from ders_core.files.address import is_remote
from ders_core.files.store import TensorStore
from ders_core.files.texts import Texts, as_paths
from ders_core.hf.describe import ModelFacts, describe, load_config
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.repair.collect import Collected, Placed, collect, place
from ders_core.repair.memory import Needed, check_memory, needed
from ders_core.repair.places import locate
from ders_core.repair.settings import RepairSettings
from ders_core.repair.text import RepairText, read_windows


@dataclass(frozen=True)
class Work:
    """What a repair has to do, as far as it is known before a weight is read."""

    packed: PackedCheckpoint
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
    ) -> Work:
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
        config = load_config(TensorStore.open(teacher.path), trust_remote_code=trust)

        def memory_for(trained: int) -> Needed:
            shapes = [stack.stacked for stack in checkpoint.manifest.stacks]
            return needed(facts, config, shapes, trained, texts.training.shape[1], settings)

        check_memory(memory_for(0), where)  # before codes are unpacked
        collected = collect(checkpoint, teacher, settings.train, where, tell)
        trained = sum(leaf.start.numel() for leaf in collected.leaves)
        if not trained:
            raise RecipeError(
                f"{checkpoint.path} holds nothing of {', '.join(settings.train)} that could be "
                "trained; choose other parts with --train, or keep it as it is"
            )
        memory = memory_for(trained)
        tell(f"needs {memory.text}")
        check_memory(memory, where)
        names = (_names(text), () if heldout is None else _names(heldout))
        return cls(
            checkpoint,
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

    def placed(self, teacher: PreTrainedModel, network: PreTrainedModel) -> Placed:
        """What is trained, with its places in the packed model `network`. teacher: the original.
        Raises EvaluationError if nothing of it is found there."""
        collected = self.collected
        located = locate(
            teacher,
            self.original,
            network,
            collected.layers,
            collected.coded | collected.matrices,
            collected.plain.keys() - collected.matrices,
            collected.slots,
        )
        placed = place(collected, located)
        if not placed.leaves:
            raise EvaluationError(
                f"nothing of {', '.join(self.settings.train)} was found in the model that "
                f"transformers makes of {self.packed.path} ({placed.left_out[0]}); choose other "
                "parts with --train"
            )
        return placed

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


def _names(texts: Texts) -> tuple[str, ...]:
    return tuple(path.name for path in as_paths(texts))


def _digest(windows: torch.Tensor) -> str:
    return hashlib.sha256(windows.numpy().tobytes()).hexdigest()

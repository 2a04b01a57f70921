"""What the reference model said, kept on disk, so that only one model is in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ders_core.evaluate.forward import Batch

FLOAT32_BYTES = 4_000_000_000
"""Up to so many bytes log-probabilities are kept in float32; beyond, in bfloat16."""


@dataclass
class ReferenceStore:
    """Batches in a temporary directory, one file each, in the order in which they came."""

    directory: Path
    half: bool = False
    files: list[Path] = field(default_factory=list)

    def expect(self, tokens: int, vocabulary: int) -> None:
        """Choose how precisely to keep `tokens` × `vocabulary` log-probabilities."""
        self.half = 4 * tokens * vocabulary > FLOAT32_BYTES

    def add(self, batch: Batch) -> None:
        log_probs = batch.log_probs.cpu()
        tensors = {"log_probs": log_probs.bfloat16() if self.half else log_probs}
        if batch.chosen is not None:
            tensors["chosen"] = batch.chosen.cpu()
        path = self.directory / f"{len(self.files):06d}.safetensors"
        save_file(tensors, path)
        self.files.append(path)

    def read(self, number: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(log_probs float32 `[tokens, vocabulary]`, chosen) of one batch."""
        tensors = load_file(self.files[number])
        log_probs = tensors["log_probs"].float()
        if self.half:
            log_probs = log_probs.log_softmax(-1)  # rounding must not make the sum other than 1
        return log_probs, tensors.get("chosen")


@contextmanager
def reference_store() -> Iterator[ReferenceStore]:
    """A store that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="ders-eval-") as directory:
        yield ReferenceStore(Path(directory))

"""The reference model's predictions on disk, so that only one model is in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ders_core.errors import EvaluationError
from ders_core.evaluate.forward import Answers
from ders_core.files.place_errors import system_error
from ders_core.files.scratch import scratch_directory
from ders_core.units import bytes_text

FLOAT32_BYTES = 4_000_000_000
"""Up to this many bytes, log-probabilities are kept in float32; beyond, in float16.

float16 rounds a log-probability by at most 1/2048 of itself. `divergence` normalises the rows, so
the KL is off by about half the variance of that error: about 1e-6 nats a token.
"""

LEAST_HALF = -60_000.0
"""Log-probabilities below do not fit into float16."""


@dataclass(frozen=True)
class Kept:
    """log_probs: `[tokens, vocabulary]` float32. top: `[tokens]`, the most likely token, exact
    whatever the storage. chosen: as in `Answers`."""

    log_probs: torch.Tensor
    top: torch.Tensor
    chosen: torch.Tensor | None


@dataclass(frozen=True)
class ReferenceStore:
    """Windows in a temporary directory, one memory-mapped file each, by number."""

    directory: Path
    half: bool

    def write(self, number: int, answers: Answers) -> None:
        """Keep the answers to window `number`. Raises EvaluationError if the disk is full."""
        log_probs = answers.log_probs
        stored = log_probs.clamp_min(LEAST_HALF).half() if self.half else log_probs
        tensors = {"log_probs": stored.cpu(), "top": log_probs.argmax(-1).cpu()}
        if answers.chosen is not None:
            tensors["chosen"] = answers.chosen.cpu()
        try:
            save_file(tensors, self._file(number))
        except (OSError, SafetensorError) as error:
            reason = getattr(system_error(error), "strerror", error)
            raise EvaluationError(
                f"{self.directory} cannot be written ({reason}); free space there, or set "
                "TMPDIR to a larger disk"
            ) from error

    def read(self, number: int) -> Kept:
        """The stored answers to window `number`. Raises EvaluationError if something removed or
        changed them."""
        try:
            tensors = load_file(self._file(number))
        except (OSError, SafetensorError) as error:
            reason = getattr(system_error(error), "strerror", error)
            raise EvaluationError(
                f"{self._file(number)} cannot be read ({reason}), though it was written before; "
                "let nothing clear TMPDIR, then measure again"
            ) from error
        return Kept(tensors["log_probs"].float(), tensors["top"], tensors.get("chosen"))

    def _file(self, number: int) -> Path:
        return self.directory / f"{number:06d}.safetensors"


@contextmanager
def reference_store(tokens: int, vocabulary: int) -> Iterator[ReferenceStore]:
    """A store for `tokens` × `vocabulary` log-probabilities that leaves nothing behind.

    Raises EvaluationError if there is no room for it.
    """
    values = tokens * vocabulary
    half = 4 * values > FLOAT32_BYTES
    needed = (2 if half else 4) * values
    with scratch_directory("eval") as directory:
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise EvaluationError(
                f"the original's predictions for {tokens} tokens take {bytes_text(needed)}, and "
                f"{directory.parent} has {bytes_text(free)} left; measure on fewer tokens, or "
                "set TMPDIR to a larger disk"
            )
        yield ReferenceStore(directory, half)

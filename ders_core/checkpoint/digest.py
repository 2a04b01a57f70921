"""The exact content of a group, as one hash of its weights as they are read."""

from __future__ import annotations

import hashlib

from ders_core.checkpoint.stacks import MatrixStack
from ders_core.checkpoint.streaming import matrices
from ders_core.files.writer import tensor_bytes
from ders_core.later import torch


class WeightsDigest:
    """SHA-256 of the weights of a group: every expert's `[out, in]` row by row in the order of the
    experts, then the biases `[experts, out]` if there are any, each in the dtype in which it is
    read (of a source of codes that is the one of its numbers), little-endian.

    How the source stores them (transposed, fused, in which file) does not matter.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, weights: torch.Tensor) -> None:
        """The next values, on the CPU."""
        for chunk in tensor_bytes(weights):
            self._sha256.update(chunk)

    def add_biases(self, stack: MatrixStack) -> None:
        """The group's biases, after its weights. Raises CheckpointError."""
        if stack.added:
            self.add(stack.read_biases())

    @property
    def sha256(self) -> str:
        """Hex, of what was added so far."""
        return self._sha256.hexdigest()


def stack_digest(stack: MatrixStack) -> str:
    """Read a group once, for its hex SHA-256 (see `WeightsDigest`). Raises CheckpointError."""
    digest = WeightsDigest()
    for _ in matrices(stack, seen=digest.add):
        pass
    digest.add_biases(stack)
    return digest.sha256

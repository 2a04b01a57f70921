"""Rows cut into blocks: neighbours in a row that share a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ders_core.compute.sent import sent
from ders_core.later import torch


@dataclass(frozen=True)
class Blocks:
    """width: of a row. size: entries in a block; the last block of a row may be shorter, and is
    padded with zeros."""

    width: int
    size: int

    @classmethod
    def of(cls, width: int, size: int) -> Blocks:
        """With size 0 a block is a whole row."""
        return cls(width, max(min(size or width, width), 1))

    @property
    def count(self) -> int:
        """Blocks in a row."""
        return math.ceil(self.width / self.size)

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, width]` as `[rows, blocks, size]`."""
        padding = self.count * self.size - self.width
        if padding:
            rows = torch.nn.functional.pad(rows, (0, padding))
        blocks: torch.Tensor = rows.unflatten(1, (self.count, self.size))
        return blocks

    def join(self, blocks: torch.Tensor) -> torch.Tensor:
        """The inverse of `split`."""
        return blocks.flatten(1)[:, : self.width]

    def split_weights(
        self, weights: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor | None:
        """Weights of columns `[1, width]` as `[1, blocks, size]` float32, 0 for padding; None where
        all are 1."""
        if weights is None and self.count * self.size == self.width:
            return None
        return self.split(torch.ones(1, self.width, device=device) if weights is None else weights)


def column_weights(importance: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The weight of an error in each column, `[1, in]` float32, 1 on average; None if nothing is
    known. Where all are zero, each is 1."""
    if importance is None:
        return None
    power = sent(importance, device).float().clamp_min(0)
    mean = power.mean()
    return torch.where(mean > 0, power / mean, 1.0).clamp_min(1e-6).unsqueeze(0)

"""How rows of a delta become codes once their scales are known: each value by itself, or columns in
turn, with errors made up for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import CHUNK, Lines, coded, decoded_rows, gain_factors
from ders_core.codecs.fitting.gptq import Turns, compensated, turns_of
from ders_core.codecs.fitting.in_turn import ROWS
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.row_factors import gain_of_rows
from ders_core.compute.pieces import chunk_values
from ders_core.later import torch


class RowRounding(ABC):
    """Of a matrix; pure. Each row is rounded without the others."""

    @abstractmethod
    def values(self, shape: tuple[int, int], device: torch.device) -> int:
        """How many values of a matrix of this shape are rounded at a time."""

    @abstractmethod
    def codes(
        self, rows: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        """uint8 `[rows, in]` of rows float32, alike."""

    @abstractmethod
    def factors(
        self, rows: torch.Tensor, codes: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        """What lines are to be multiplied by for a gain of 1, float32 `[rows, blocks]` or `[rows,
        1]`."""


@dataclass(frozen=True)
class ToNearest(RowRounding):
    """weights: of errors in each column, float32 `[1, in]`; None for 1."""

    weights: torch.Tensor | None

    def values(self, shape: tuple[int, int], device: torch.device) -> int:
        return chunk_values(device, CHUNK)

    def codes(
        self, rows: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        return coded(rows, lines, levels, blocks)

    def factors(
        self, rows: torch.Tensor, codes: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        return gain_factors(rows, codes, lines, levels, blocks, self.weights)


@dataclass(frozen=True)
class MadeUpFor(RowRounding):
    """moments: of the inputs, `[in, in]` float32. turns: of them; kept here, so that experts whose
    inputs differ, worked on at once, each compute theirs once and not for every few rows."""

    moments: torch.Tensor
    turns: Turns

    @classmethod
    def of(cls, moments: torch.Tensor) -> MadeUpFor:
        """Raises CodecError if they cannot be second moments."""
        return cls(moments, turns_of(moments))

    def values(self, shape: tuple[int, int], device: torch.device) -> int:
        """On a GPU all: columns in turn take as long for few rows as for many."""
        out, width = shape
        return max(ROWS if device.type == "cpu" else out, 1) * width

    def codes(
        self, rows: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        return compensated(rows, self.turns, lines, levels, blocks)

    def factors(
        self, rows: torch.Tensor, codes: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
    ) -> torch.Tensor:
        """In the metric of the inputs; one for each row."""
        decoded = decoded_rows(codes, lines, levels, blocks)
        return gain_of_rows(rows, decoded, self.moments).unsqueeze(1)

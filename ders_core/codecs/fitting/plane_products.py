"""Products with codes that lie in bit planes, on a CPU: the planes are never decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import Lines
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.routed import RoutedDeltas, Routes, product_of
from ders_core.compute import kernels
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.later import np, torch

FEW_PLANES = 16
"""Tokens times bits, up to which products of planes are quicker than decoding once."""

ROWS, BYTE = 32, 8
"""What loops take at a time: rows, of which there may be fewer, and entries of one of them."""


@dataclass(frozen=True)
class RoutedPlanes(RoutedDeltas):
    """Δ̂ = scale · (code + start) + offset.

    codes: uint8 `[experts, bytes]`, each as `pack` makes of `[out, in]`. scales, offsets:
    `[experts, out, blocks]`, floats that `kind_of` knows. All share memory with what they are of.
    common: a code whose entries add nothing to the sums of inputs, and no rounding errors: best
    that of the level nearest to zero, so that little is left that `start` adds for it.
    """

    codes: torch.Tensor
    bits: int
    scales: torch.Tensor
    offsets: torch.Tensor | None
    start: float
    common: int = 0

    @classmethod
    def of(
        cls,
        codes: torch.Tensor,
        bits: int,
        lines: Lines,
        levels: Levels,
        blocks: Blocks,
        shape: tuple[int, int],
    ) -> RoutedPlanes | None:
        """None unless levels are 1 apart, and blocks are of whole bytes and fill rows. lines: of
        all experts."""
        fills = blocks.size * blocks.count == shape[1] and blocks.size % BYTE == 0
        if not levels.uniform or not fills or not min(shape):
            return None
        start = float(levels.table[0])
        nearest = min(max(round(-start), 0), (1 << bits) - 1)
        return cls(codes, bits, lines.scale, lines.offset, start, nearest)

    @property
    def most_pairs(self) -> int:
        return FEW_PLANES // self.bits

    @cached_property
    def _arrays(self) -> tuple[Any, Any, Any, Any, Any, Any, int]:
        """What loops want of it."""
        scales = kernels.bits(self.scales)
        offsets = scales[:0, :0, :0] if self.offsets is None else kernels.bits(self.offsets)
        kind = kernels.kind_of(self.scales.dtype)
        start = np.float32(self.start)
        return self.codes.numpy(), self.bits, scales, offsets, kind, start, self.common

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        from ders_core.compute.kernels import nibbles, plane_products

        _, out, blocks = self.scales.shape
        of_blocks = x.reshape(len(x), blocks, -1).sum(-1)
        tables = np.empty((len(x), x.shape[1] // nibbles.INPUTS, nibbles.TABLE), np.uint8)
        nibbles.write_tables(x, tables)
        pairs = routes.beside_one_another()
        inputs = (*self._arrays, of_blocks, tables, pairs.inputs, pairs.experts)

        def work(first: int, last: int) -> None:
            plane_products.add(*inputs, y, column, pairs.outputs, first, last)

        values = out * x.shape[1] * self.bits * len(routes.inputs)
        by_row_pieces(work, out, values, multiple=ROWS)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Δ̂ᵀ `[n, out]` in x's dtype, of the first expert. x: `[n, in]`."""

        def add(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> None:
            self.add(x, y, 0, Routes(rows, np.zeros_like(rows), rows))

        return product_of(x, self.scales.shape[1], add)


def is_few(x: torch.Tensor, planes: RoutedPlanes) -> bool:
    """Whether planes are the quicker way for these inputs `[n, in]`: they are few, and no gradient
    is asked for."""
    is_tracked = x.requires_grad and torch.is_grad_enabled()
    if is_tracked or not 0 < len(x) <= planes.most_pairs:
        return False
    return kernels.takes(planes.codes, x.detach())

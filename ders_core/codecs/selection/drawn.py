"""Entries drawn at random, again from the seed when they are decoded: places take no bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.coding.block_draws import BlockDraw
from ders_core.codecs.coding.prng import position_chunks
from ders_core.codecs.delta_entries import Entries
from ders_core.codecs.selection.placing import Places
from ders_core.codecs.selection.selection import Chosen, Selection, kept_of_all
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import pieces
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

PIECE_BLOCKS = 8
"""Of a sum that is looked at in pieces: they are still in a core's cache then."""


@dataclass(frozen=True)
class RandomSelection(Selection):
    """DeRS eq. 4 and DARE (arXiv 2311.03099): exactly round(p·n) entries are dropped, drawn without
    replacement, a share in each block of the matrix."""

    drop_rate: float

    def count(self, shape: tuple[int, int]) -> int:
        return kept_of_all(self.drop_rate, shape)

    def specs(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        return {}

    def select(self, entries: Entries, context: EncodeContext) -> Chosen:
        return Chosen(self.places({}, entries.shape, context.seed, entries.device), {})

    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Places:
        return DrawnPlaces(BlockDraw(math.prod(shape), self.count(shape), seed), device)

    def decoding_gain(self, shape: tuple[int, int]) -> float:
        """1 / (1 − p), for the exact share of entries that stay."""
        count = self.count(shape)
        return math.prod(shape) / count if count else 0.0


class WholeSelection(RandomSelection):
    """The same, drawn over the whole matrix at once."""

    def places(
        self,
        parts: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
    ) -> Places:
        return WholePlaces(math.prod(shape), self.count(shape), seed, device)


@dataclass(frozen=True)
class WholePlaces(Places):
    """Of a draw over a whole matrix: drawn anew each time, since they would take more memory than
    the values. size, count: entries of the matrix, and of these the kept ones."""

    size: int
    count: int
    seed: int
    device: torch.device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return position_chunks(self.size, self.count, self.seed, self.device)


class DrawnPlaces(Places):
    """Of a draw in blocks, each of which is read and written while it lies in the cache."""

    def __init__(self, draw: BlockDraw, device: torch.device) -> None:
        self._draw, self._device = draw, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self._draw.chunks(self._device)

    def between(self, begin: int, end: int) -> tuple[int, Iterable[torch.Tensor]]:
        blocks = self._draw.blocks_of(begin, end)
        return self._draw.drawn_before(blocks.start), self._draw.chunks(self._device, blocks)

    def read_into(self, values: torch.Tensor, entries: Entries) -> None:
        if self._draw.has_loops(self._device):
            entries.read_drawn(values, self._draw)
        else:
            super().read_into(values, entries)

    def added(self, values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if not self._draw.has_loops(self._device):
            return super().added(values, base)
        return self._sum(values, base, slice(0, self._draw.blocks))

    def added_in_pieces(self, values: torch.Tensor, base: torch.Tensor) -> Iterator[torch.Tensor]:
        if not self._draw.has_loops(self._device):
            yield from super().added_in_pieces(values, base)
            return
        for blocks in pieces(self._draw.blocks, PIECE_BLOCKS):
            yield self._sum(values, base, blocks)

    def _sum(self, values: torch.Tensor, base: torch.Tensor, blocks: slice) -> torch.Tensor:
        """base + values in some blocks, in one flat piece."""
        from ders_core.compute.kernels import block_draws

        draw, kind = self._draw, kernels.kind_of(base.dtype)
        begin, end = draw.first_entry(blocks.start), draw.first_entry(blocks.stop)
        piece = fresh((end - begin,), base.dtype)
        below = kernels.bits(base[begin:end])
        kept = values[draw.drawn_before(blocks.start) : draw.drawn_before(blocks.stop)].numpy()
        part = blocks.start, blocks.stop
        block_draws.add(kept, below, kind, *draw.for_loops(), *part, kernels.bits(piece))
        return piece

"""A matrix as codes of its entries, and scales of blocks of them: search, code, pack.

Compiled loops do that in one pass over a few rows that stay in cache, with any levels; where they
cannot, or rounding makes up for its errors, plain torch and single loops do the same one after
another, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ders_core.codecs.coding.packing import (
    BYTE,
    TRITS,
    pack_piece,
    pack_trits_piece,
    packed_bytes,
    packed_trits_bytes,
)
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import CHUNK, Lines
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.lines import best_lines, line_arguments
from ders_core.codecs.fitting.row_rounding import MadeUpFor, RowRounding, ToNearest
from ders_core.codecs.fitting.scales import best_scales, search_arguments, weights_of_blocks
from ders_core.codecs.fitting.stored_scales import lines_of, stored_scales
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values, pieces
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.compute.threads import each_piece
from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.compute.kernels.kept_scales import Kept

Parts = dict[str, "torch.Tensor"]

PIECE_BYTES = 20
"""A value of the rows that are rounded at a time, at most: the delta, what is left of it, errors,
codes, and copies of these."""


@dataclass(frozen=True)
class BlockCodes:
    """bits: of a code; None for trits. has_offsets: a block has an offset beside its scale.
    in_bytes: scales are shares of the row's largest. target: the gain that scales are multiplied
    for; None to leave them. dtype: of what is kept in floats."""

    bits: int | None
    levels: Levels
    blocks: Blocks
    has_offsets: bool
    in_bytes: bool
    target: float | None
    dtype: torch.dtype

    def rounded(
        self, deltas: Deltas, weights: torch.Tensor | None, moments: torch.Tensor | None
    ) -> Parts:
        """The parts of a matrix. weights: of errors in each column, float32 `[1, in]`; None for 1.
        moments: of the inputs; with all of them, `[in, in]`, rounding makes up for its errors.
        Raises CodecError if they cannot be second moments."""
        if moments is not None and moments.dim() == 2:
            made_up_for = MadeUpFor.of(moments.to(deltas.device))
            return self._in_several_passes(deltas, weights, made_up_for)
        parts = self._in_one_pass(deltas, weights)
        return parts or self._in_several_passes(deltas, weights, ToNearest(weights))

    def _in_one_pass(self, deltas: Deltas, weights: torch.Tensor | None) -> Parts | None:
        """Each code is that of the nearest level; None where loops cannot do it."""
        matrix = deltas.for_loops
        if matrix is None or not kernels.is_kind(self.dtype):
            return None
        from ders_core.compute.kernels.quantize import quantize

        parts, (out, width) = self._empty(deltas), deltas.shape
        per_byte = TRITS if self.bits is None else BYTE
        split = self.blocks.split_weights(weights, deltas.device)
        heights = weights_of_blocks(split, torch.empty(1, self.blocks.count, self.blocks.size))
        assert heights is not None
        of_columns = np.empty(0, np.float32) if weights is None else weights.view(-1).numpy()
        kept = self._for_loops(parts)

        def work(begin: int, end: int) -> None:
            quantize(
                *matrix,
                begin,
                end,
                self.blocks.size,
                heights.float().numpy(),
                search_arguments(self.levels),
                line_arguments(self.levels),
                of_columns,
                np.float32(self.target or 0.0),
                np.float32(torch.finfo(torch.float32).tiny),
                kept,
                self.bits or 0,
                parts["codes"].numpy(),
            )

        multiple = 1 if width % per_byte == 0 else per_byte
        by_row_pieces(work, out, out * width, multiple=multiple)
        return parts

    def _in_several_passes(
        self, deltas: Deltas, weights: torch.Tensor | None, rounding: RowRounding
    ) -> Parts:
        """The same, over some rows at a time, by any rounding."""
        parts, (out, width) = self._empty(deltas), deltas.shape

        def work(rows: slice) -> None:
            delta = deltas.of_rows(rows)
            kept = self._stored(self._lines(delta, weights))
            lines = lines_of(kept)
            codes = rounding.codes(delta, lines, self.levels, self.blocks)
            if self.target is not None:
                factors = rounding.factors(delta, codes, lines, self.levels, self.blocks)
                kept = self._stored(lines.times(self.target * factors))
            for name, part in kept.items():
                parts[name][rows] = part
            begin = rows.start * width
            if self.bits is None:
                pack_trits_piece(codes.view(-1), parts["codes"], begin)
            else:
                pack_piece(codes.view(-1), self.bits, parts["codes"], begin, out * width)

        values = rounding.values(deltas.shape, deltas.device)
        each_piece(work, self._row_chunks(deltas.shape, values), values * PIECE_BYTES)
        return parts

    def _empty(self, deltas: Deltas) -> Parts:
        """Memory for the parts."""
        out, width = deltas.shape
        count, blocks, device = out * width, (out, self.blocks.count), deltas.device
        length = packed_trits_bytes(count) if self.bits is None else packed_bytes(count, self.bits)
        of_scales = torch.uint8 if self.in_bytes else self.dtype
        parts = {"scales": torch.empty(blocks, dtype=of_scales, device=device)}
        if self.in_bytes:
            parts["tops"] = torch.empty(out, dtype=self.dtype, device=device)
        if self.has_offsets:
            parts["offsets"] = torch.empty(blocks, dtype=self.dtype, device=device)
        return parts | {"codes": fresh((length,), torch.uint8, device)}

    def _for_loops(self, parts: Parts) -> Kept:
        """As `compute.kernels.kept_scales` wants them."""
        scales, none = parts["scales"], torch.empty(0, 0, dtype=self.dtype)
        of_floats = none if self.in_bytes else scales
        shares = scales if self.in_bytes else torch.empty(0, 0, dtype=torch.uint8)
        tops, offsets = parts.get("tops", none.view(-1)), parts.get("offsets", none)
        floats, of_rows, moves = (kernels.bits(part) for part in (of_floats, tops, offsets))
        return floats, shares.numpy(), of_rows, moves, kernels.kind_of(self.dtype)

    def _lines(self, delta: torch.Tensor, weights: torch.Tensor | None) -> Lines:
        """The best scales and offsets of rows `[rows, in]`, before they are stored."""
        shape = delta.shape[0], self.blocks.count
        scales = torch.empty(shape, device=delta.device)
        offsets = torch.empty(shape, device=delta.device) if self.has_offsets else None
        of_blocks = self.blocks.split_weights(weights, delta.device)
        values = chunk_values(delta.device, CHUNK)
        for rows in self._row_chunks((delta.shape[0], delta.shape[1]), values):
            split = self.blocks.split(delta[rows])
            if offsets is None:
                scales[rows] = best_scales(split, of_blocks, self.levels)
            else:
                scales[rows], offsets[rows] = best_lines(split, of_blocks, self.levels)
        return Lines(scales, offsets)

    def _stored(self, lines: Lines) -> Parts:
        return stored_scales(lines, in_bytes=self.in_bytes, dtype=self.dtype)

    def _row_chunks(self, shape: tuple[int, int], values: int) -> list[slice]:
        """Rows in pieces of about so many values, whose codes fill whole bytes; for a matrix
        without rows one empty piece."""
        many = TRITS if self.bits is None else BYTE
        step = max(values // max(shape[1], 1) // many, 1) * many
        return list(pieces(shape[0], step)) or [slice(0, 0)]

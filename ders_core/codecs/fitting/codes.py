"""Codes of rows against the scales of their blocks, and what codes stand for: v ≈ s·L[q] (+ z).

Compiled loops do it a block at a time; where these cannot, plain torch does the same, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ders_core.codecs.coding.packing import (
    BYTE,
    TRITS,
    check_trits,
    packed_bytes,
    packed_trits_bytes,
    unpack,
    unpack_trits,
)
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.levels import Levels
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.compute.row_pieces import LEAST, by_row_pieces
from ders_core.compute.sums import SUMMED_FIRST, halved_sum
from ders_core.compute.threads import available_threads
from ders_core.later import np, torch

CHUNK = 1 << 19
"""Values at a time on the CPU: many for the cost of a call, few for a matrix."""

TOGETHER = 40
"""Codes of so many rows fill whole bytes, in bits or trits and of any width."""


@dataclass(frozen=True)
class Lines:
    """Of the blocks of some rows. scale: s, float32 `[rows, blocks]`. offset: z, alike; None where
    there is none."""

    scale: torch.Tensor
    offset: torch.Tensor | None

    def of_rows(self, rows: slice) -> Lines:
        return Lines(self.scale[rows], None if self.offset is None else self.offset[rows])

    def times(self, factors: torch.Tensor) -> Lines:
        """With scales and offsets multiplied, broadcast."""
        offset = None if self.offset is None else self.offset * factors
        return Lines(self.scale * factors, offset)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.scale,) if self.offset is None else (self.scale, self.offset)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        none = np.empty((0, 0), dtype=np.float32)
        return self.scale.numpy(), none if self.offset is None else self.offset.numpy()


def coded(rows: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks) -> torch.Tensor:
    """The codes of the nearest levels, uint8 `[rows, in]`. rows: float32 `[rows, in]`."""
    if kernels.takes(rows, *lines.tensors):
        from ders_core.compute.kernels import codes as loops

        codes = torch.empty(rows.shape, dtype=torch.uint8)
        table, borders, bins, fine = levels.arrays
        loops.encode(
            rows.numpy(), blocks.size, *lines.arrays, table, borders, bins, fine, codes.numpy()
        )
        return codes
    values, scale = blocks.split(rows), lines.scale.unsqueeze(-1)
    if lines.offset is not None:
        values = values - lines.offset.unsqueeze(-1)
    nearest = levels.nearest(values / torch.where(scale > 0, scale, 1.0))
    return blocks.join(nearest.to(torch.uint8)).contiguous()


def gain_factors(
    rows: torch.Tensor,
    codes: torch.Tensor,
    lines: Lines,
    levels: Levels,
    blocks: Blocks,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """What each block is to be multiplied by, for a gain of 1: float32 `[rows, blocks]`; 1 for
    blocks of zeros. weights: of errors in each column, `[1, in]`; None for 1."""
    tiny = torch.finfo(torch.float32).tiny
    tensors = (rows, codes, *lines.tensors, *([] if weights is None else [weights]))
    if kernels.takes(*tensors):
        from ders_core.compute.kernels import codes as loops

        found = torch.empty_like(lines.scale)
        heavy = np.empty(0, np.float32) if weights is None else weights.view(-1).numpy()
        loops.factors(
            rows.numpy(),
            codes.numpy(),
            blocks.size,
            heavy,
            *lines.arrays,
            levels.table.numpy(),
            np.float32(tiny),
            found.numpy(),
        )
        return found
    values, decoded = blocks.split(rows), _decoded_blocks(codes, lines, levels, blocks)
    heights = blocks.split_weights(weights, rows.device)
    largest = values.abs().amax(-1, keepdim=True).clamp_min(tiny)
    unit = values / largest
    weighed = unit if heights is None else unit * heights
    energy, shared = halved_sum(unit * weighed), halved_sum(decoded / largest * weighed)
    usual = (shared > 0) & (energy > 0)
    return torch.where(usual, energy / torch.where(usual, shared, 1.0), 1.0)


def decoded(
    packed: torch.Tensor,
    bits: int | None,
    lines: Lines,
    levels: Levels,
    blocks: Blocks,
    base: torch.Tensor | None,
    chosen: slice = slice(None),
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """base + s·L[q] (+ z), added in float32 and rounded once to `dtype`, by default the base's;
    without a base, in float32: `[out, in]`.

    packed: the codes of the matrix. bits: of a code; None for trits. chosen: of which rows, step 1;
    the base has these. Raises CodecError for bytes that hold no trits.
    """
    shape = (lines.scale.shape[0], blocks.width)
    first, last, _ = chosen.indices(shape[0])
    lines = lines.of_rows(chosen)
    if base is None:
        out = fresh((last - first, shape[1]), torch.float32, packed.device)
    else:
        out = fresh(base.shape, dtype or base.dtype, base.device)
    loops = CodeLoops.of(packed, bits, levels, blocks, shape[0])
    if loops is not None and first % TOGETHER == 0 and loops.take(lines, base, out):
        loops.write(lines, base, out, first)
        return out
    codes = unpacked(packed, bits, shape)[chosen]
    for rows in row_pieces(out.shape, chunk_values(packed.device, CHUNK)):
        delta = decoded_rows(codes[rows], lines.of_rows(rows), levels, blocks)
        out[rows] = delta if base is None else delta.add_(base[rows].float())
    return out


@dataclass(frozen=True)
class CodeLoops:
    """Compiled loops that decode the codes of one matrix, again and again; they share its memory.

    numbers: the codes; bits: 0 for trits. rows: of the matrix.
    """

    numbers: np.ndarray
    bits: int
    levels: Levels
    blocks: Blocks
    rows: int

    @classmethod
    def of(
        cls, packed: torch.Tensor, bits: int | None, levels: Levels, blocks: Blocks, rows: int
    ) -> CodeLoops | None:
        """None where loops cannot work on these. packed, bits: as of `decoded`."""
        count = rows * blocks.width
        needed = packed_trits_bytes(count) if bits is None else packed_bytes(count, bits)
        if packed.numel() != needed or not kernels.takes(packed):
            return None
        return cls(packed.numpy(), bits or 0, levels, blocks, rows)

    def take(self, lines: Lines, base: torch.Tensor | None, out: torch.Tensor) -> bool:
        """Whether they can write what these make."""
        stored = (out,) if base is None else (out, base)
        return (
            lines.scale.shape[1] == self.blocks.count
            and all(map(kernels.takes_stored, stored))
            and kernels.takes(*lines.tensors)
        )

    def write(
        self, lines: Lines, base: torch.Tensor | None, out: torch.Tensor, first: int = 0
    ) -> None:
        """out: gets base + s·L[q] (+ z) of some rows, the matrix's `first` on, a multiple of
        TOGETHER. Raises CodecError for bytes that hold no trits."""
        from ders_core.compute.kernels import codes as loops

        width, numbers = self.blocks.width, self.numbers
        if self.bits == 0:
            end = -(-(first + len(out)) * width // TRITS)
            check_trits(torch.from_numpy(numbers[first * width // TRITS : end]))
        below = out[:0] if base is None else base
        bases, kind_of_base = kernels.bits(below), kernels.kind_of(below.dtype)
        plane, (scales, offsets) = packed_bytes(self.rows * width, 1), lines.arrays
        kind, weights = kernels.kind_of(out.dtype), kernels.bits(out)
        table, is_uniform, size = self.levels.table.numpy(), self.levels.uniform, self.blocks.size

        def work(begin: int, end: int) -> None:
            here = scales[begin:end], offsets[begin:end], table, is_uniform
            rows = bases[begin:end], kind_of_base, kind, weights[begin:end]
            loops.decode(numbers, self.bits, first + begin, plane, size, *here, *rows)

        per_byte = TRITS if self.bits == 0 else BYTE
        multiple = 1 if width % per_byte == 0 else per_byte
        by_row_pieces(work, len(out), out.numel(), multiple=multiple)


def decoded_in_pieces(
    packed: torch.Tensor,
    bits: int | None,
    lines: Lines,
    levels: Levels,
    blocks: Blocks,
    base: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """What `decoded` gives, as of `Codec.unpack_in_pieces`: by loops a few rows at a time, which
    are still in the processor's cache when they are looked at."""
    out, width = base.shape
    multiple, step = math.lcm(TOGETHER, SUMMED_FIRST // math.gcd(SUMMED_FIRST, width)), max(out, 1)
    if kernels.takes_stored(base) and kernels.takes(packed, *lines.tensors):
        threads = available_threads()
        values = CHUNK if threads == 1 else LEAST * threads  # each has rows to share
        step = max(values // max(width * multiple, 1), 1) * multiple
    for rows in list(pieces(out, step)) or [slice(0, 0)]:
        yield decoded(packed, bits, lines, levels, blocks, base[rows], rows).view(-1)


def decoded_rows(codes: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks) -> torch.Tensor:
    """What codes `[rows, in]` stand for, float32."""
    return blocks.join(_decoded_blocks(codes, lines, levels, blocks))


def _decoded_blocks(
    codes: torch.Tensor, lines: Lines, levels: Levels, blocks: Blocks
) -> torch.Tensor:
    """The same, float32 `[rows, blocks, size]`."""
    decoded = levels.at(blocks.split(codes)).mul_(lines.scale.unsqueeze(-1))
    if lines.offset is not None:
        decoded += lines.offset.unsqueeze(-1)
    return decoded


def unpacked(packed: torch.Tensor, bits: int | None, shape: tuple[int, int]) -> torch.Tensor:
    """The codes of a matrix, uint8 `[out, in]`; bits, and what is raised, as of `decoded`."""
    count = shape[0] * shape[1]
    if bits is None:
        return unpack_trits(packed, count).view(shape)
    return unpack(packed, bits, count, torch.uint8).view(shape)

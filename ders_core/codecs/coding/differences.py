"""How far weights are from their base, counted in floats.

Floats are mapped to integers that count them in order. A difference is small, and the smaller the
larger the base's exponent is: the exponent is its context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.compute.pieces import pieces
from ders_core.later import np, torch

CONTEXTS = 16
"""Exponents of the base with statistics of their own, from the largest one down; the last one
stands for all smaller ones too."""

PIECE = 1 << 16
"""Weights that are coded one after another; then come the rare ones among them."""


BLOCK = 1 << 10
"""Weights that compiled loops work on at once."""


@dataclass(frozen=True)
class Split:
    """How differences become cells (`rans.CellsToPush`) in each context.

    lows: how many low bits are noise; firsts: the upper part that is level 0; spans: how many
    levels there are (this one more is for all that is outside): int64 `[CONTEXTS]` each.
    usual_cells, rare_cells: int32 `[CONTEXTS, levels or more]`, −1 of a level that is rare, and of
    one that is not. escapes: int32 `[CONTEXTS]`, cells that say that a rare one comes. noise_bits,
    rare_count, far_count: how much there is of each.
    """

    lows: np.ndarray
    firsts: np.ndarray
    spans: np.ndarray
    usual_cells: np.ndarray
    rare_cells: np.ndarray
    escapes: np.ndarray
    noise_bits: int
    rare_count: int
    far_count: int


@dataclass(frozen=True)
class Parts:
    """cells: uint16 `[n]`, of the usual tables. rare: uint16, cells of the rare ones in the order
    of weights. rare_ends: int64, how many there are up to the end of each piece. far: int64, the
    upper parts that are outside. noise: uint8, the low bits, one after another."""

    cells: np.ndarray
    rare: np.ndarray
    rare_ends: np.ndarray
    far: np.ndarray
    noise: np.ndarray


class Base:
    """values: floats `[n]` on the CPU."""

    def __init__(self, values: torch.Tensor) -> None:
        self.bits = bits_of(values)
        self.half = 1 << 8 * values.element_size() - 1
        self.fraction = -int(math.log2(torch.finfo(values.dtype).eps))
        self.mask = self.half // (1 << self.fraction) - 1
        self.top = self._largest >> self.fraction

    @property
    def _largest(self) -> int:
        """Of the bits without the sign; 0 of none."""
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            most: int = float_counts.largest(self.bits, self.half)
            return most
        parts = (self.bits[piece] & self.half - 1 for piece in pieces(self.bits.size, PIECE))
        return max((int(part.max()) for part in parts), default=0)

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """See `compute.kernels.float_counts`."""
        return self.half, self.fraction, self.mask, self.top, CONTEXTS - 1

    @property
    def _room(self) -> np.ndarray:
        """For the differences of a block: 17 or 33 bits each."""
        return np.empty(BLOCK, np.int32 if self.bits.itemsize == 2 else np.int64)

    def contexts(self, piece: slice) -> np.ndarray:
        """uint8: of the weights in a piece."""
        exponents = self.bits[piece].astype(np.int64) >> self.fraction & self.mask
        found: np.ndarray = np.minimum(self.top - exponents, CONTEXTS - 1).astype(np.uint8)
        return found

    def distances(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the sum of distances in each context, how many weights it has): int64 `[CONTEXTS]`.
        weight: `bits_of`."""
        sums, counts = np.zeros((2, CONTEXTS), dtype=np.int64)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.sum_distances(self.bits, weight, self.numbers, self._room, sums, counts)
            return sums, counts
        for _, contexts, difference in self._differences(weight):
            counts += np.bincount(contexts, minlength=CONTEXTS)
            for number in range(CONTEXTS):
                sums[number] += np.abs(difference[contexts == number]).sum()
        return sums, counts

    def codes(self, weight: np.ndarray, lows: np.ndarray, farthest: int) -> np.ndarray:
        """How often differences without their low bits are −farthest … farthest − 1 in each
        context, and in the last column how often others: int64 `[CONTEXTS, 2·farthest + 1]`."""
        counts = np.zeros((CONTEXTS, 2 * farthest + 1), dtype=np.int64)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.count_codes(self.bits, weight, self.numbers, self._room, lows, counts)
            return counts
        for _, contexts, difference in self._differences(weight):
            codes = (difference >> lows[contexts]) + farthest
            codes[(codes < 0) | (codes > 2 * farthest)] = 2 * farthest
            cells = contexts.astype(np.int64) * counts.shape[1] + codes
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        return counts

    def split(self, weight: np.ndarray, split: Split) -> Parts:
        """weight: `bits_of`."""
        if not kernels.takes():
            return self._split_plainly(weight, split)
        from ders_core.compute.kernels import float_counts

        parts = Parts(
            fresh_array(weight.size, np.uint16),
            np.empty(split.rare_count + 1, np.uint16),
            np.empty(-(-weight.size // PIECE), np.int64),
            np.empty(split.far_count + 1, np.int64),
            fresh_array(-(-split.noise_bits // 32) + 1, np.uint32),
        )
        tables = split.lows, split.firsts, split.spans
        cells = split.usual_cells, split.rare_cells, split.escapes
        arrays = parts.cells, parts.rare, parts.rare_ends, parts.far, parts.noise
        given = self.bits, weight, self.numbers, self._room
        float_counts.split(*given, *tables, *cells, PIECE, *arrays)
        noise = parts.noise.view(np.uint8)[: -(-split.noise_bits // 8)]
        return Parts(parts.cells, parts.rare[:-1], parts.rare_ends, parts.far[:-1], noise)

    def _split_plainly(self, weight: np.ndarray, split: Split) -> Parts:
        """The same as a loop does."""
        cells, of_rare, ends, far = [], [], [], []
        noise, bits = [], np.zeros(0, dtype=np.uint8)
        for _, contexts, difference in self._differences(weight):
            low, first, span = (
                table[contexts] for table in (split.lows, split.firsts, split.spans)
            )
            codes = difference >> low
            inside = (codes >= first) & (codes - first < span)
            symbols = np.where(inside, codes - first, span)
            far.append(codes[~inside])
            cell = split.usual_cells[contexts, symbols]
            of_rare.append(split.rare_cells[contexts, symbols][cell < 0])
            ends.append(len(of_rare[-1]))
            cells.append(np.where(cell < 0, split.escapes[contexts], cell))
            begins = np.cumsum(low) - low
            shifts = np.arange(int(low.sum())) - np.repeat(begins, low)
            bits = np.append(bits, np.repeat(difference, low) >> shifts & 1)
            whole = bits.size // 8 * 8
            noise.append(np.packbits(bits[:whole].astype(np.uint8), bitorder="little"))
            bits = bits[whole:]
        noise.append(np.packbits(bits.astype(np.uint8), bitorder="little"))
        return Parts(
            _joined(cells, np.uint16),
            _joined(of_rare, np.uint16),
            np.cumsum(ends, dtype=np.int64),
            _joined(far, np.int64),
            _joined(noise, np.uint8),
        )

    def _differences(self, weight: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(a piece, contexts, differences) of all weights."""
        for piece in pieces(weight.size, PIECE):
            start = ordered(self.bits[piece], self.half)
            yield piece, self.contexts(piece), ordered(weight[piece], self.half) - start


def bits_of(values: torch.Tensor) -> np.ndarray:
    """The bits of floats `[n]` as signed numbers, int16 or int32; shares memory."""
    same = torch.int16 if values.dtype.itemsize == 2 else torch.int32
    bits: np.ndarray = values.contiguous().view(same).numpy()
    return bits


def ordered(bits: np.ndarray, half: int) -> np.ndarray:
    """int64 that count floats in their order; −0 comes just before 0."""
    numbers = bits.astype(np.int64)
    return np.where(numbers < 0, -half - 1 - numbers, numbers)


def _joined(arrays: list[np.ndarray], dtype: type[np.number]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(array.astype(dtype) for array in arrays)])

"""How far weights are from their base, counted in floats.

Floats are mapped to integers that count them in order. A difference is small, and the smaller the
larger the base's exponent is: the exponent is its context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
from ders_core.compute.pieces import pieces
from ders_core.later import np, torch

CONTEXTS = 16
"""Exponents of the base with statistics of their own, from the largest one down; the last one
stands for all smaller ones too."""

CHUNK = 1 << 20
"""Weights at a time in numpy."""


@dataclass(frozen=True)
class Split:
    """How differences become symbols in each context: int64 `[CONTEXTS]` each. lows: how many low
    bits are noise. firsts: the upper part that is symbol 0. spans: how many symbols there are; this
    one more is for all that is outside, and the next for those that are rare. of_rare: bool
    `[CONTEXTS, symbols]`."""

    lows: np.ndarray
    firsts: np.ndarray
    spans: np.ndarray
    of_rare: np.ndarray


@dataclass(frozen=True)
class Parts:
    """symbols: uint16 `[n]`. noise: uint32 `[n]`, the low bits; or `[0]` where there are none.
    rare: uint16, the rare symbols in their order; of_contexts: uint8, theirs. far: int64, the upper
    parts that are outside."""

    symbols: np.ndarray
    noise: np.ndarray
    rare: np.ndarray
    of_contexts: np.ndarray
    far: np.ndarray

    @classmethod
    def room(cls, count: int, rare: int, far: int) -> Parts:
        """One more than there are of the last three, which loops write to."""
        return cls(
            np.empty(count, np.uint16),
            np.empty(count, np.uint32),
            np.zeros(rare + 1, np.uint16),
            np.zeros(rare + 1, np.uint8),
            np.zeros(far + 1, np.int64),
        )

    def without_room(self) -> Parts:
        lists = (array[:-1] for array in (self.rare, self.of_contexts, self.far))
        return Parts(self.symbols, self.noise, *lists)


class Base:
    """values: floats `[n]` on the CPU."""

    def __init__(self, values: torch.Tensor) -> None:
        self.dtype = values.dtype
        self.bits = bits_of(values)
        self.half = 1 << 8 * values.element_size() - 1

    @cached_property
    def contexts(self) -> np.ndarray:
        """uint8 `[n]`."""
        fraction = -int(math.log2(torch.finfo(self.dtype).eps))
        mask = self.half // (1 << fraction) - 1
        found = np.empty(self.bits.size, dtype=np.uint8)
        if not found.size:
            return found
        top = int((self.bits & self.half - 1).max()) >> fraction
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.find_contexts(self.bits, fraction, mask, top, CONTEXTS - 1, found)
            return found
        for piece in pieces(found.size, CHUNK):
            exponents = self.bits[piece] >> fraction & mask
            found[piece] = np.minimum(top - exponents, CONTEXTS - 1)
        return found

    @cached_property
    def context_counts(self) -> np.ndarray:
        """How many weights have each context, int64 `[CONTEXTS]`."""
        counts = np.zeros(CONTEXTS, dtype=np.int64)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.count_contexts(self.contexts, counts)
            return counts
        for piece in pieces(self.contexts.size, CHUNK):
            counts += np.bincount(self.contexts[piece], minlength=CONTEXTS)
        return counts

    def distances(self, weight: np.ndarray) -> np.ndarray:
        """The sum of distances in each context, int64 `[CONTEXTS]`. weight: `bits_of`."""
        sums = np.zeros(CONTEXTS, dtype=np.int64)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.sum_distances(self.bits, weight, self.half, self.contexts, sums)
            return sums
        for piece, difference in self._differences(weight):
            for number in range(CONTEXTS):
                chosen = difference[self.contexts[piece] == number]
                sums[number] += np.abs(chosen).sum()
        return sums

    def codes(self, weight: np.ndarray, lows: np.ndarray, farthest: int) -> np.ndarray:
        """How often differences without their low bits are −farthest … farthest − 1 in each
        context, and in the last column how often others: int64 `[CONTEXTS, 2·farthest + 1]`."""
        counts = np.zeros((CONTEXTS, 2 * farthest + 1), dtype=np.int64)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            float_counts.count_codes(self.bits, weight, self.half, self.contexts, lows, counts)
            return counts
        for piece, difference in self._differences(weight):
            contexts = self.contexts[piece].astype(np.int64)
            codes = (difference >> lows[contexts]) + farthest
            codes[(codes < 0) | (codes > 2 * farthest)] = 2 * farthest
            cells = contexts * counts.shape[1] + codes
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        return counts

    def split(self, weight: np.ndarray, split: Split, counts: np.ndarray) -> Parts:
        """counts: how often each symbol occurs, int64 `[CONTEXTS, symbols]`."""
        parts = Parts.room(
            weight.size,
            int((counts * split.of_rare).sum()),
            int(counts[np.arange(CONTEXTS), split.spans].sum()),
        )
        tables = split.lows, split.firsts, split.spans, split.of_rare
        arrays = parts.symbols, parts.noise, parts.rare, parts.of_contexts, parts.far
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            given = self.bits, weight, self.half, self.contexts, *tables, *arrays
            float_counts.split(*given)
            return parts.without_room()
        rare_count = far_count = 0
        for piece, difference in self._differences(weight):
            contexts = self.contexts[piece]
            low, first, span = (table[contexts] for table in tables[:3])
            codes = difference >> low
            inside = (codes >= first) & (codes - first < span)
            symbols = np.where(inside, codes - first, span).astype(np.uint16)
            parts.noise[piece] = difference & (1 << low) - 1
            far = codes[~inside]
            parts.far[far_count : far_count + len(far)] = far
            far_count += len(far)
            places = np.flatnonzero(split.of_rare[contexts, symbols])
            found = slice(rare_count, rare_count + len(places))
            parts.rare[found], parts.of_contexts[found] = symbols[places], contexts[places]
            rare_count += len(places)
            symbols[places] = span[places] + 1
            parts.symbols[piece] = symbols
        return parts.without_room()

    def contexts_of_rare(self, symbols: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """uint8: of the symbols that say that a rare one comes."""
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            found = np.empty(symbols.size + 1, dtype=np.uint8)
            return found[: float_counts.find_rare(symbols, self.contexts, spans, found)]
        of_rare: np.ndarray = symbols == (spans + 1).astype(np.uint16)[self.contexts]
        contexts: np.ndarray = self.contexts[of_rare]
        return contexts

    def join(self, split: Split, parts: Parts) -> torch.Tensor:
        """Weights `[n]`, the inverse of `split`. Raises CodecError for numbers that count no float,
        and where as many are outside as are not given."""
        weight = np.empty(self.bits.size, dtype=np.int32)
        tables = split.lows, split.firsts, split.spans
        rare, far = np.append(parts.rare, np.uint16(0)), np.append(parts.far, 0)
        if kernels.takes():
            from ders_core.compute.kernels import float_counts

            given = parts.symbols, parts.noise, rare, far
            if float_counts.join(self.bits, self.half, self.contexts, *tables, *given, weight):
                raise damaged()
        else:
            self._join_plainly(tables, parts, weight)
        return torch.from_numpy(weight).to(_integer_of(self.dtype)).view(self.dtype)

    def _join_plainly(
        self, tables: tuple[np.ndarray, ...], parts: Parts, weight: np.ndarray
    ) -> None:
        """The same as a loop does."""
        rare_count = far_count = 0
        for piece in pieces(weight.size, CHUNK):
            low, first, span = (table[self.contexts[piece]] for table in tables)
            symbols = parts.symbols[piece].astype(np.int64)
            places = np.flatnonzero(symbols > span)
            symbols[places] = parts.rare[rare_count : rare_count + len(places)]
            rare_count += len(places)
            codes = symbols + first
            outside = np.flatnonzero(symbols == span)
            if far_count + len(outside) > len(parts.far):
                raise damaged()
            codes[outside] = parts.far[far_count : far_count + len(outside)]
            far_count += len(outside)
            noise = parts.noise[piece].astype(np.int64) if parts.noise.size else 0
            numbers = _ordered(self.bits[piece], self.half) + (codes << low | noise)
            if numbers.min() < -self.half or numbers.max() >= self.half:
                raise damaged()
            weight[piece] = np.where(numbers < 0, -self.half - 1 - numbers, numbers)
        if far_count < len(parts.far):
            raise damaged()

    def _differences(self, weight: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for piece in pieces(weight.size, CHUNK):
            start = _ordered(self.bits[piece], self.half)
            yield piece, _ordered(weight[piece], self.half) - start


def bits_of(values: torch.Tensor) -> np.ndarray:
    """The bits of floats `[n]` as signed numbers, int32."""
    bits: np.ndarray = values.view(_integer_of(values.dtype)).to(torch.int32).numpy()
    return bits


def _integer_of(dtype: torch.dtype) -> torch.dtype:
    """Of as many bits."""
    return torch.int16 if dtype.itemsize == 2 else torch.int32


def _ordered(bits: np.ndarray, half: int) -> np.ndarray:
    """int64 that count floats in their order; −0 comes just before 0."""
    numbers = bits.astype(np.int64)
    return np.where(numbers < 0, -half - 1 - numbers, numbers)

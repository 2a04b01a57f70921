"""Entries that mostly have one level: the gaps between the others.

A gap is how many usual entries come before another one. Its high part (the gap without `low_bits`
bits) comes with the chances of independent entries, so that one number says them all; its low part
is stored as it is. A high part that no symbol is for comes in pieces, each a symbol that says how
much it is, and the rest follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.rans import BITS, Table, symbol_dtype
from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np

MOST = 255
"""The largest high part that has a symbol."""

USUAL_LOG2 = 8
"""High parts are below 2^USUAL_LOG2 on average."""

MOST_LOW_BITS = 12
UNIT_BITS = 16
LEAST_CHANCE = 1 << UNIT_BITS - BITS
"""Of a high part to go on by one, in 1/2^UNIT_BITS: less would be no slot."""


@dataclass(frozen=True)
class Gaps:
    """goes_on: the chance that a high part is larger than any number, given that it is not smaller,
    in 1/2^16, at least LEAST_CHANCE. low_bits: 0 to MOST_LOW_BITS. Raises CodecError for others."""

    goes_on: int
    low_bits: int

    def __post_init__(self) -> None:
        possible = LEAST_CHANCE <= self.goes_on < 1 << UNIT_BITS
        if not (possible and 0 <= self.low_bits <= MOST_LOW_BITS):
            raise damaged()

    @classmethod
    def of(cls, units: int, count: int, low_bits: int) -> Gaps:
        """The best for so many gaps, above 0. units: what their high parts add up to."""
        goes_on = (units << UNIT_BITS) // (units + count)
        return cls(min(max(goes_on, LEAST_CHANCE), (1 << UNIT_BITS) - 1), low_bits)

    def table(self) -> Table:
        """Of high parts 0, 1, 2, …, and a last symbol for a piece of as many as there are of them.

        The chance that a high part is n or more, in 1/2^32, is that of n − 1 times `goes_on`,
        rounded down; the slots of n are what this loses from n to n + 1, in 1/2^BITS, both rounded
        down. The piece takes the place of the first n that would get no slot, or leave none.
        """
        chance, goes_on, ends = 1 << 32, self.goes_on, [1 << BITS]
        for _ in range(MOST):
            chance = chance * goes_on >> UNIT_BITS
            left = chance >> 32 - BITS
            if left in (0, ends[-1]):
                break
            ends.append(left)
        return Table(-np.diff(ends, append=0))

    def low_table(self) -> Table:
        """Of low parts: all alike."""
        return Table(np.full(1 << self.low_bits, 1 << BITS - self.low_bits))


def low_bits_of(count: int, entries: int) -> int:
    """Of so many gaps, above 0, between entries."""
    low_bits = 0
    while count << (low_bits + USUAL_LOG2) < entries and low_bits < MOST_LOW_BITS:
        low_bits += 1
    return low_bits


@dataclass(frozen=True)
class Found:
    """What is not the common code. others: the codes, uint8 or uint16 `[n]`. low: the low parts of
    the gaps before them, `[n]`, or `[0]` without low bits. units: what the high parts add up to."""

    others: np.ndarray
    low: np.ndarray
    units: int
    _pieces: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, common: int, count: int, low_bits: int) -> Found:
        """codes: uint8 or uint16 `[n]`. count: how many others there are, above 0."""
        low_count, low_dtype = count if low_bits else 0, symbol_dtype(1 << low_bits)
        if not kernels.takes():
            places = np.flatnonzero(codes != common)
            gaps = np.diff(places, prepend=-1) - 1
            high = gaps >> low_bits
            low = (gaps[:low_count] & (1 << low_bits) - 1).astype(low_dtype)
            return cls(codes[places], low, int(high.sum()), _in_pieces(high, MOST))
        from ders_core.compute.kernels.gaps import find

        others, low = fresh_array(count, codes.dtype.type), fresh_array(low_count, low_dtype)
        pieces = fresh_array(count + (codes.size >> low_bits) // MOST, np.uint8)
        word = np.full(8 // codes.itemsize, common, codes.dtype).view(np.uint64)[0]
        given = codes, codes.dtype.type(common), word, low_bits, MOST
        filled, units = find(*given, others, pieces, low)
        return cls(others, low, units, pieces[:filled])

    def high(self, most: int) -> np.ndarray:
        """The high parts in pieces of at most `most`: symbols uint8 `[m]`."""
        if most == MOST:
            return self._pieces
        if not kernels.takes():
            ends = np.flatnonzero(self._pieces < MOST)
            totals = np.cumsum(self._pieces, dtype=np.int64)[ends]
            return _in_pieces(np.diff(totals, prepend=0), most)
        from ders_core.compute.kernels.gaps import split

        symbols = fresh_array(len(self.others) + self.units // most, np.uint8)
        return symbols[: split(self._pieces, MOST, most, symbols)]


def _in_pieces(high: np.ndarray, most: int) -> np.ndarray:
    pieces = high // most
    ends = np.cumsum(pieces + 1)
    symbols = np.full(int(ends[-1]), most, dtype=np.uint8)
    symbols[ends - 1] = high - pieces * most
    return symbols


def place_dtype(entries: int) -> type[np.generic]:
    """Of places among so many entries, and of one that is larger than all."""
    return np.uint32 if entries < 1 << 32 else np.int64


def fill_places(
    places: np.ndarray, symbols: np.ndarray, low: np.ndarray, kind: Gaps, most: int
) -> None:
    """The inverse, and summed up: fill places, of `place_dtype`, ascending, with those of the
    entries after the gaps, or the largest that it holds. There are as many as symbols below `most`;
    the last symbol is one of them. low: as many, or none without low bits."""
    largest = int(np.iinfo(places.dtype).max)
    if kernels.takes():
        from ders_core.compute.kernels import gaps

        gaps.sum_up(symbols, low, kind.low_bits, most, largest, places)
        return
    ends = np.flatnonzero(symbols < most)
    whole = np.cumsum(symbols, dtype=np.int64)[ends] << kind.low_bits
    if low.size:
        whole += np.cumsum(low, dtype=np.int64)
    places[:] = np.minimum(whole + np.arange(len(ends)), largest)

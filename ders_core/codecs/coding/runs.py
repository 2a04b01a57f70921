"""Entries that mostly have one level: the gaps between the others.

A gap is how many usual entries come before another one. Its high part (the gap without `low_bits`
bits) comes with the chances of independent entries, so that one number says them all; its low part
is stored as it is. A high part that no symbol is for comes in pieces, each a symbol that says how
much it is, and the rest follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.rans import BITS, Table
from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
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
    def of(cls, gaps: np.ndarray, entries: int) -> Gaps:
        """The best for these, int64 `[n]`, n > 0. entries: how many there are in all."""
        low_bits = 0
        while len(gaps) << (low_bits + USUAL_LOG2) < entries and low_bits < MOST_LOW_BITS:
            low_bits += 1
        units = int((gaps >> low_bits).sum())
        goes_on = (units << UNIT_BITS) // (units + len(gaps))
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


def coded(gaps: np.ndarray, kind: Gaps, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(symbols of high parts uint16 `[m]`, low parts uint16 `[n]`) of gaps, int64 `[n]`."""
    if kernels.takes():
        from ders_core.compute.kernels import gaps as loops

        high_parts = np.empty(loops.count_pieces(gaps, kind.low_bits, most), dtype=np.uint16)
        low = np.empty(gaps.size, dtype=np.uint16)
        loops.split(gaps, kind.low_bits, most, high_parts, low)
        return high_parts, low
    high = gaps >> kind.low_bits
    pieces = high // most
    ends = np.cumsum(pieces + 1)
    symbols = np.full(int(ends[-1]) if len(ends) else 0, most, dtype=np.uint16)
    symbols[ends - 1] = high - pieces * most
    return symbols, (gaps & (1 << kind.low_bits) - 1).astype(np.uint16)


def places_of(symbols: np.ndarray, low: np.ndarray, kind: Gaps, most: int) -> np.ndarray:
    """The inverse, and summed up: the places of the entries after the gaps, int64 `[n]`, ascending.
    low: as many as symbols below `most`; the last symbol is one of them."""
    if kernels.takes():
        from ders_core.compute.kernels import gaps

        found = np.empty(low.size + 1, dtype=np.int64)
        gaps.sum_up(symbols, low, kind.low_bits, most, found)
        return found[:-1]
    ends = np.flatnonzero(symbols < most)
    high = np.cumsum(symbols, dtype=np.int64)[ends]
    whole = (high << kind.low_bits) + np.cumsum(low, dtype=np.int64)
    places: np.ndarray = whole + np.arange(len(ends))
    return places

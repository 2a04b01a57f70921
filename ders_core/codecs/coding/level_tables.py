"""How often levels come: a table of usual ones, and one of those that are rare."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.frequencies import eighths, frequencies_of
from ders_core.codecs.coding.rans import BITS, MOST_BITS, Popper, Table
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np

MOST_LEVELS = 1 << MOST_BITS
"""Each has a slot even where all are rare."""

RARE = 1 << BITS - 1
"""A level that fewer than one entry in so many has is rare."""


@dataclass(frozen=True)
class Push:
    """What goes to the stack at once. counts: how often each symbol occurs, int64."""

    symbols: np.ndarray
    table: Table
    counts: np.ndarray

    def about_bits(self) -> int:
        """What it takes, to an eighth of a bit a symbol, in integers."""
        return _eighths(self.counts, self.table) // 8


def _eighths(counts: np.ndarray, table: Table) -> int:
    """Eighths of bits that symbols of these counts take."""
    return int((counts * (8 * table.bits - eighths(table.frequencies))).sum())


def eighths_of(counts: np.ndarray, tables: LevelTables) -> int:
    """Eighths of bits that levels of these counts, int64, take, and no less."""
    usual = len(tables.usual.frequencies) - 1
    within = counts[:usual]
    taken = _eighths(np.append(within, 0) * (tables.usual.frequencies > 0), tables.usual)
    if tables.rare is None:
        return taken
    rare = within * (tables.rare.frequencies > 0)
    escapes = np.zeros(usual + 1, dtype=np.int64)
    escapes[-1] = rare.sum()
    return taken + _eighths(escapes, tables.usual) + _eighths(rare, tables.rare)


@dataclass(frozen=True)
class LevelTables:
    """Which levels entries have: numbers of levels. Of rare ones the first table says only that
    they are rare, by one symbol after the last level, and the second one which they are."""

    usual: Table
    rare: Table | None

    @classmethod
    def of(cls, counts: np.ndarray) -> LevelTables:
        """counts: int64 `[levels]`, not all 0."""
        few = (counts > 0) & (counts * RARE < counts.sum())
        if few.sum() < 2:
            few[:] = False
        usual = np.append(np.where(few, 0, counts), counts[few].sum())
        rare = Table(frequencies_of(counts * few, MOST_BITS), MOST_BITS) if few.any() else None
        return cls(Table(frequencies_of(usual, BITS)), rare)

    def put(self, writer: Writer) -> None:
        """From the first level that occurs to the last one: twice its frequency, and one more where
        it is rare."""
        numbers = 2 * self.usual.frequencies[:-1]
        if self.rare is not None:
            rare = self.rare.frequencies
            numbers = np.where(rare > 0, 2 * rare + 1, numbers)
        used = np.flatnonzero(numbers)
        first, end = int(used[0]), int(used[-1]) + 1
        writer.put_small([first, end - first])
        writer.put_small(numbers[first:end])

    @classmethod
    def take(cls, reader: Reader, levels: int) -> LevelTables:
        first, span = reader.small(2)
        if first + span > levels:
            raise damaged()
        numbers = np.zeros(levels, dtype=np.int64)
        numbers[first : first + span] = reader.small_array(span)
        of_rare = numbers & 1 == 1
        usual = np.where(of_rare, 0, numbers >> 1)
        left = (1 << BITS) - int(usual.sum())
        if left < 0 or (left > 0) != bool(of_rare.any()):
            raise damaged()
        rare = Table(np.where(of_rare, numbers >> 1, 0), MOST_BITS) if left else None
        return cls(Table(np.append(usual, left)), rare)

    def pushes(self, symbols: np.ndarray, counts: np.ndarray) -> list[Push]:
        """What is popped one after another. symbols: uint16, numbers of levels."""
        if self.rare is None:
            return [Push(symbols, self.usual, np.append(counts, 0))]
        of_rare = self.rare.frequencies > 0
        of_usual = np.append(np.where(of_rare, 0, counts), counts[of_rare].sum())
        usual, rare = _parted(symbols, of_rare, int(of_usual[-1]))
        return [
            Push(usual, self.usual, of_usual),
            Push(rare, self.rare, np.where(of_rare, counts, 0)),
        ]

    def fill(self, symbols: np.ndarray, popper: Popper) -> None:
        """Pop numbers of levels into uint16 `[n]`."""
        popper.fill(symbols, self.usual)
        if self.rare is None:
            return
        escape = np.uint16(len(self.rare.frequencies))
        if kernels.takes():
            from ders_core.compute.kernels import rare

            count = rare.count(symbols, escape)
            rare.put(symbols, escape, popper.pop(count, self.rare))
            return
        places = np.flatnonzero(symbols == escape)
        symbols[places] = popper.pop(len(places), self.rare)


def _parted(symbols: np.ndarray, of_rare: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(symbols with one number for all rare ones, the rare ones): uint16. count: of rare ones."""
    if kernels.takes():
        from ders_core.compute.kernels.rare import part

        usual, rare = fresh_array(symbols.size, np.uint16), np.empty(count, dtype=np.uint16)
        part(symbols, of_rare, usual, rare)
        return usual, rare
    places = of_rare[symbols]
    return np.where(places, np.uint16(len(of_rare)), symbols), symbols[places]

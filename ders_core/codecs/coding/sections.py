"""How the entries of one class are coded: all alike, a symbol each, or as gaps between those that
do not have the common level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ders_core.codecs.coding import runs
from ders_core.codecs.coding.frequencies import eighths, frequencies_of
from ders_core.codecs.coding.rans import BITS, MOST_BITS, Popper, Table
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute import kernels
from ders_core.later import np

ALONE, DENSE, RUNS = 0, 1, 2

MOST_LEVELS = 1 << MOST_BITS
"""Each has a slot even where all are rare."""

RARE = 1 << BITS - 1
"""A level that fewer than one entry in so many has is rare."""

FEW_OTHERS = 0.2
"""Share of entries without the common level up to which gaps are quicker than symbols."""


@dataclass(frozen=True)
class Push:
    """What goes to the stack at once. counts: how often each symbol occurs, int64."""

    symbols: np.ndarray
    table: Table
    counts: np.ndarray

    def about_bits(self) -> int:
        """What it takes, to an eighth of a bit a symbol, in integers."""
        taken = 8 * self.table.bits - eighths(self.table.frequencies)
        return int((self.counts * taken).sum()) // 8


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

    def pop(self, count: int, popper: Popper) -> np.ndarray:
        """Numbers of levels, uint16 `[count]`."""
        symbols = popper.pop(count, self.usual)
        if self.rare is not None:
            places = np.flatnonzero(symbols == len(self.rare.frequencies))
            symbols[places] = popper.pop(len(places), self.rare)
        return symbols


def _parted(symbols: np.ndarray, of_rare: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(symbols with one number for all rare ones, the rare ones): uint16. count: of rare ones."""
    if kernels.takes():
        from ders_core.compute.kernels import arranged

        usual, rare = np.empty_like(symbols), np.empty(count, dtype=np.uint16)
        arranged.part(symbols, of_rare, usual, rare)
        return usual, rare
    places = of_rare[symbols]
    return np.where(places, np.uint16(len(of_rare)), symbols), symbols[places]


@dataclass(frozen=True)
class Section:
    """A class as it is written: its head, and what goes to the stack, in the order in which it is
    popped."""

    form: int
    numbers: Sequence[int]
    tables: LevelTables | None = None
    pushes: Sequence[Push] = field(default=())

    def head(self, writer: Writer) -> None:
        writer.put([self.form], "u1")
        writer.put_small(self.numbers)
        if self.tables is not None:
            self.tables.put(writer)


def _gaps_of(symbols: np.ndarray, common: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(how many common symbols come before each other one int64, those others uint16). count: of
    others."""
    if kernels.takes():
        from ders_core.compute.kernels import arranged

        gaps, others = np.empty(count + 1, np.int64), np.empty(count + 1, np.uint16)
        arranged.find_gaps(symbols, np.uint16(common), gaps, others)
        return gaps[:count], others[:count]
    places = np.flatnonzero(symbols != common)
    return np.diff(places, prepend=-1) - 1, symbols[places]


def section_of(symbols: np.ndarray, counts: np.ndarray, common: int) -> Section:
    """symbols: uint16 `[entries]`, numbers of levels. counts: how often each level occurs, int64.
    common: the level that runs are of."""
    occurring = np.flatnonzero(counts)
    if len(occurring) < 2:
        return Section(ALONE, [int(occurring[0]) if len(occurring) else 0])
    others = counts.copy()
    others[common] = 0
    if others.sum() > FEW_OTHERS * symbols.size:
        tables = LevelTables.of(counts)
        return Section(DENSE, [], tables, tables.pushes(symbols, counts))
    gaps, of_others = _gaps_of(symbols, common, int(others.sum()))
    kind, tables = runs.Gaps.of(gaps, symbols.size), LevelTables.of(others)
    high_table, low_table = kind.table(), kind.low_table()
    most = len(high_table.frequencies) - 1
    high, low = runs.coded(gaps, kind, most)
    pushes = [
        Push(high, high_table, np.bincount(high, minlength=most + 1)),
        Push(low, low_table, np.bincount(low, minlength=1 << kind.low_bits)),
        *tables.pushes(of_others, others),
    ]
    return Section(RUNS, [kind.low_bits, kind.goes_on, len(high)], tables, pushes)


@dataclass(frozen=True)
class Popped:
    """The levels of a class's entries. symbols: uint16 numbers of levels: of all entries, or, where
    places are given (int64, ascending), of those there, while the others have the common one."""

    symbols: np.ndarray
    places: np.ndarray | None = None


@dataclass(frozen=True)
class Head:
    """The head of a section that was read."""

    form: int
    alone: int = 0
    tables: LevelTables | None = None
    gaps: runs.Gaps | None = None
    count: int = 0

    def pop(self, size: int, common: int, popper: Popper) -> Popped:
        """size: how many entries the class has. Raises CodecError if it cannot have them."""
        if self.tables is None:
            if self.alone == common:
                return Popped(np.empty(0, np.uint16), np.empty(0, np.int64))
            return Popped(np.full(size, self.alone, dtype=np.uint16))
        if self.gaps is None:
            return Popped(self.tables.pop(size, popper))
        if self.count > size:
            raise damaged()
        table = self.gaps.table()
        most = len(table.frequencies) - 1
        high = popper.pop(self.count, table)
        others = int((high < most).sum())
        low = popper.pop(others, self.gaps.low_table())
        places = runs.places_of(high, low, self.gaps, most)
        if others and (places[-1] >= size or high[-1] == most):
            raise damaged()
        return Popped(self.tables.pop(others, popper), places)


def read_section(reader: Reader, levels: int) -> Head:
    """Raises CodecError for a head that no section has."""
    form = reader.number("u1")
    if form == ALONE:
        alone = reader.small(1)[0]
        if alone >= levels:
            raise damaged()
        return Head(form, alone)
    if form == DENSE:
        return Head(form, tables=LevelTables.take(reader, levels))
    if form != RUNS:
        raise damaged()
    low_bits, goes_on, count = reader.small(3)
    gaps = runs.Gaps(goes_on, low_bits)
    return Head(form, 0, LevelTables.take(reader, levels), gaps, count)

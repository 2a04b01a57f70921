"""How the entries of one class are coded: all alike, a symbol each, or as gaps between those that
do not have the common level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ders_core.codecs.coding import runs
from ders_core.codecs.coding.level_tables import Alphabet, LevelTables, Push
from ders_core.codecs.coding.rans import PIECE, Popper
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute.pieces import pieces
from ders_core.later import np

ALONE, DENSE, RUNS = 0, 1, 2

FEW_OTHERS = 0.2
"""Share of entries without the common level up to which gaps are quicker than symbols."""


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


def section_of(codes: np.ndarray, counts: np.ndarray, common: int, alphabet: Alphabet) -> Section:
    """codes: uint8 or uint16 `[entries]`, of the alphabet. counts: how often each level occurs,
    int64. common: the level that runs are of."""
    occurring = np.flatnonzero(counts)
    if len(occurring) < 2:
        return Section(ALONE, [int(occurring[0]) if len(occurring) else 0])
    others = counts.copy()
    others[common] = 0
    if others.sum() > FEW_OTHERS * codes.size:
        tables = LevelTables.of(counts)
        return Section(DENSE, [], tables, tables.pushes(codes, counts, alphabet))
    count, usual = int(others.sum()), int(alphabet.codes[common])
    low_bits = runs.low_bits_of(count, codes.size)
    found = runs.Found.of(codes, usual, count, low_bits)
    kind, tables = runs.Gaps.of(found.units, count, low_bits), LevelTables.of(others)
    high_table, low_table = kind.table(), kind.low_table()
    high = found.high(len(high_table.frequencies) - 1)
    pushes = [
        Push(high, high_table, _counted(high, len(high_table.frequencies))),
        Push(found.low, low_table, _counted(found.low, 1 << low_bits)),
        *tables.pushes(found.others, others, alphabet),
    ]
    return Section(RUNS, [kind.low_bits, kind.goes_on, len(high)], tables, pushes)


def _counted(symbols: np.ndarray, length: int) -> np.ndarray:
    """How often each symbol occurs, int64 `[length]`; in pieces, as numpy counts int64 alone."""
    counts = np.zeros(length, dtype=np.int64)
    for piece in pieces(symbols.size, PIECE):
        counts += np.bincount(symbols[piece], minlength=length)
    return counts


@dataclass(frozen=True)
class Popped:
    """The levels of a class's entries. symbols: numbers of levels: of all entries, or, where places
    are given (ascending), of those there, while the others have the common one."""

    symbols: np.ndarray
    places: np.ndarray | None = None


@dataclass(frozen=True)
class Room:
    """What sections are read into, each where the one before it ended. symbols: uint8 or uint16
    `[n]`, numbers of levels, of sections with one for each entry. others: the same `[m]` of those
    with places, `[m]`, of `runs.place_dtype`: after each of these sections comes one that is
    larger than all."""

    symbols: np.ndarray
    others: np.ndarray
    places: np.ndarray

    @classmethod
    def of_symbols(cls, symbols: np.ndarray) -> Room:
        """Where all sections have one for each entry."""
        return cls(symbols, np.empty(0, symbols.dtype), np.empty(0, np.uint32))


@dataclass(frozen=True)
class Head:
    """The head of a section that was read."""

    form: int
    alone: int = 0
    tables: LevelTables | None = None
    gaps: runs.Gaps | None = None
    count: int = 0

    def has_symbols(self, common: int) -> bool:
        """Whether there is a symbol for each entry."""
        return self.form == DENSE or (self.form == ALONE and self.alone != common)

    def others(self, size: int, common: int) -> float:
        """About how many of `size` entries do not have the common level: as the tables say, whose
        slots are shares of what there was."""
        if self.tables is None:
            return 0 if self.alone == common else size
        if self.gaps is None:
            usual = self.tables.usual
            slots = int(usual.frequencies[common]) if common < len(usual.frequencies) else 0
            return size * (1 - slots / (1 << usual.bits))
        table = self.gaps.table()
        return self.count * (1 - int(table.frequencies[-1]) / (1 << table.bits))

    def pop(
        self, size: int, popper: Popper, symbols: np.ndarray, places: np.ndarray | None
    ) -> Popped:
        """size: how many entries the class has. symbols: `[size]`, for theirs; with places,
        `[count + 1]` both, for the symbols of others. Raises CodecError if it cannot have them."""
        if places is None:
            if self.tables is None:
                symbols.fill(self.alone)
            else:
                self.tables.fill(symbols, popper)
            return Popped(symbols)
        others = 0
        if self.gaps is not None:
            others = self._fill_places(size, self.gaps, popper, places)
        places[others] = np.iinfo(places.dtype).max
        if self.tables is not None:
            self.tables.fill(symbols[:others], popper)
        return Popped(symbols[:others], places[:others])

    def _fill_places(self, size: int, gaps: runs.Gaps, popper: Popper, places: np.ndarray) -> int:
        """How many others there are."""
        table = gaps.table()
        most = len(table.frequencies) - 1
        high = popper.pop(self.count, table)
        others = int(np.count_nonzero(high < most))
        low = popper.pop(others if gaps.low_bits else 0, gaps.low_table())
        runs.fill_places(places[:others], high, low, gaps, most)
        if others and (places[others - 1] >= size or high[-1] == most):
            raise damaged()
        return others


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

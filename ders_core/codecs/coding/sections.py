"""How the entries of one class are coded: all alike, a symbol each, or as gaps between those that
do not have the common level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ders_core.codecs.coding import runs
from ders_core.codecs.coding.level_tables import Alphabet, LevelTables, Push
from ders_core.codecs.coding.rans import Popper
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute import kernels
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


def _gaps_of(codes: np.ndarray, common: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(how many common codes come before each other one int64, those others uint16). count: of
    others."""
    if kernels.takes():
        from ders_core.compute.kernels.gaps import find

        gaps, others = np.empty(count, np.int64), np.empty(count, np.uint16)
        find(codes, np.uint16(common), gaps, others)
        return gaps, others
    places = np.flatnonzero(codes != common)
    return np.diff(places, prepend=-1) - 1, codes[places]


def section_of(codes: np.ndarray, counts: np.ndarray, common: int, alphabet: Alphabet) -> Section:
    """codes: uint16 `[entries]`, of the alphabet. counts: how often each level occurs, int64.
    common: the level that runs are of."""
    occurring = np.flatnonzero(counts)
    if len(occurring) < 2:
        return Section(ALONE, [int(occurring[0]) if len(occurring) else 0])
    others = counts.copy()
    others[common] = 0
    if others.sum() > FEW_OTHERS * codes.size:
        tables = LevelTables.of(counts)
        return Section(DENSE, [], tables, tables.pushes(codes, counts, alphabet))
    gaps, of_others = _gaps_of(codes, int(alphabet.codes[common]), int(others.sum()))
    kind, tables = runs.Gaps.of(gaps, codes.size), LevelTables.of(others)
    high_table, low_table = kind.table(), kind.low_table()
    most = len(high_table.frequencies) - 1
    high, low = runs.coded(gaps, kind, most)
    pushes = [
        Push(high, high_table, np.bincount(high, minlength=most + 1)),
        Push(low, low_table, np.bincount(low, minlength=1 << kind.low_bits)),
        *tables.pushes(of_others, others, alphabet),
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

    def pop(self, size: int, common: int, popper: Popper, room: np.ndarray) -> Popped:
        """size: how many entries the class has. room: uint16 `[size]` for their symbols, or `[0]`
        where there are none of each. Raises CodecError if it cannot have them."""
        if self.tables is None:
            if self.alone == common:
                return Popped(np.empty(0, np.uint16), np.empty(0, np.int64))
            room.fill(self.alone)
            return Popped(room)
        if self.gaps is None:
            self.tables.fill(room, popper)
            return Popped(room)
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
        of_others = np.empty(others, dtype=np.uint16)
        self.tables.fill(of_others, popper)
        return Popped(of_others, places)


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

"""Tables of contexts without a compiler: see `difference_tables`."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.codecs.coding.context_tables import (
    COARSER,
    FAR,
    FARTHEST,
    MOST_LOW,
    NONE,
    RARE,
    ReadTables,
    WriteTables,
)
from ders_core.codecs.coding.differences import CONTEXTS, Split
from ders_core.codecs.coding.frequencies import LOG_BITS, row_logs
from ders_core.codecs.coding.level_tables import LevelTables, eighths_of
from ders_core.codecs.coding.rans import BITS, MOST_BITS, MOST_CELLS, CellsToPop, CellsToPush, Table
from ders_core.codecs.coding.signed import signed, unsigned
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.later import np


class Cells:
    """Cells of several tables: see `rans.CellsToPush`. symbols, contexts: int64 `[cells]`, of each
    cell."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables, self._bits = tables, tables[0].bits
        self.alone = all(table.alone is not None for table in tables)
        """Whether symbols take no bits."""
        occurring = [np.flatnonzero(table.frequencies) for table in tables]
        self.symbols = np.concatenate(occurring)
        self.contexts = np.repeat(np.arange(len(tables)), [len(each) for each in occurring])

    def numbers(self, width: int) -> np.ndarray:
        """int32 `[contexts, width]`: the cell of each symbol below the width; −1 where it has
        none."""
        found = np.full((len(self._tables), width), -1, dtype=np.int32)
        cells = np.flatnonzero(self.symbols < width)
        found[self.contexts[cells], self.symbols[cells]] = cells
        return found

    def to_push(self) -> CellsToPush:
        inverse = self._of_cells([table.inverse for table in self._tables])
        return CellsToPush(self._bits, self._info, inverse)

    def to_pop(self) -> CellsToPop:
        if self.symbols.size > MOST_CELLS:
            raise damaged()
        widest = max(len(table.frequencies) for table in self._tables)
        pairs = zip(self._tables, self.numbers(widest), strict=True)
        slots = np.stack([cells[table.slots].astype(np.uint16) for table, cells in pairs])
        return CellsToPop(self._bits, self._info, slots, self.alone)

    @property
    def _info(self) -> np.ndarray:
        return self._of_cells([table.info for table in self._tables])

    def _of_cells(self, numbers: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(numbers, self._tables, strict=True)
        return np.concatenate([each[table.frequencies > 0] for each, table in pairs])


def written_tables(lows: np.ndarray, counts: np.ndarray) -> WriteTables:
    lows, counts = _coarsened(lows, counts)
    noise_bits = int((counts.sum(1) * lows).sum())
    firsts, spans, counted = _windows(counts)
    tables = [
        LevelTables.of(row[: span + 1]) if row.any() else None
        for row, span in zip(counted, spans.tolist(), strict=True)
    ]
    writer = Writer()
    for low, first, span, table in zip(lows, firsts, spans, tables, strict=True):
        writer.put_small([low, 0 if table is None else span + 1])
        if table is not None:
            writer.put_small(unsigned(np.array([first])))
            table.put(writer)
    usual, rare = _usual(tables), _rare(tables)
    width = counted.shape[1]
    usual_cells = usual.numbers(width + 1)
    every = np.arange(CONTEXTS)
    split = Split(
        lows,
        firsts,
        spans,
        usual_cells,
        rare.numbers(width + 1),
        usual_cells[every, spans + 1],
        noise_bits,
        int((counted * (usual_cells[:, :width] < 0)).sum()),
        int(counted[every, spans].sum()),
    )
    pairs = zip(counted, tables, strict=True)
    eighths = sum(eighths_of(row, table) for row, table in pairs if table is not None)
    takes_bits = not (usual.alone and rare.alone)
    head = writer.tensor().numpy()
    code = row_logs(counts)
    return WriteTables(split, usual.to_push(), rare.to_push(), head, code, eighths, takes_bits)


def read_tables(reader: Reader) -> ReadTables:
    lows, firsts, spans = (np.zeros(CONTEXTS, dtype=np.int64) for _ in range(3))
    tables: list[LevelTables | None] = []
    for number in range(CONTEXTS):
        low, levels = reader.small(2)
        if low > MOST_LOW or levels > 2 * FARTHEST + 1:
            raise damaged()
        lows[number], spans[number] = low, levels - 1
        if levels:
            firsts[number] = signed(reader.small_array(1))[0]
            if abs(firsts[number]) > FARTHEST:
                raise damaged()
        tables.append(LevelTables.take(reader, levels) if levels else None)
    usual, rare = _usual(tables), _rare(tables)
    uppers = (_uppers(cells, lows, firsts, spans) for cells in (usual, rare))
    return ReadTables(lows, usual.to_pop(), rare.to_pop(), *uppers)


def _uppers(cells: Cells, lows: np.ndarray, firsts: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Of `ReadTables`."""
    symbols, contexts = cells.symbols, cells.contexts
    last = spans[contexts]
    found: np.ndarray = symbols + firsts[contexts] << lows[contexts]
    found[symbols == last] = FAR
    found[symbols > last] = RARE
    found[last < 0] = NONE
    return found


def _coarsened(lows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with as many low bits more as make the stream smallest: what they take themselves,
    against whole bytes of entropy and of the table."""
    chosen_lows, chosen = lows.copy(), counts
    best, entries = np.full(len(lows), np.iinfo(np.int64).max), counts.sum(1)
    for more in range(COARSER + 1):
        used = np.count_nonzero(counts, axis=1)
        taken = row_logs(counts) + (entries * more << LOG_BITS) >> LOG_BITS + 3
        taken += used + used // 2
        better = taken < best
        best = np.where(better, taken, best)
        chosen_lows = np.where(better, lows + more, chosen_lows)
        chosen = np.where(better[:, None], counts, chosen)
        counts = _halved(counts)
    return chosen_lows, chosen


def _halved(counts: np.ndarray) -> np.ndarray:
    """With one low bit more: two symbols become one; those in the last column stay there."""
    halved = np.zeros_like(counts)
    quarter = (counts.shape[1] - 1) // 4
    halved[:, quarter : 3 * quarter] = counts[:, :-1:2] + counts[:, 1::2]
    halved[:, -1] = counts[:, -1]
    return halved


def _windows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(firsts, spans, how often each symbol occurs): from the first to the last that occur, and
    what is outside. counts: as of `Base.codes`."""
    inside = counts[:, :-1]
    occurring = inside > 0
    any_inside = occurring.any(1)
    first = np.where(any_inside, occurring.argmax(1), 0)
    end = np.where(any_inside, inside.shape[1] - occurring[:, ::-1].argmax(1), 0)
    spans = end - first
    counted = np.zeros((CONTEXTS, int(spans.max()) + 1), dtype=np.int64)
    for row, source, begin, span in zip(counted, counts, first, spans, strict=True):
        row[:span] = source[begin : begin + span]
        row[span] = source[-1]
    return first - FARTHEST, spans, counted


def _usual(tables: Sequence[LevelTables | None]) -> Cells:
    """tables: None of a context without entries."""
    return Cells([_always(BITS) if table is None else table.usual for table in tables])


def _rare(tables: Sequence[LevelTables | None]) -> Cells:
    rare = (None if table is None else table.rare for table in tables)
    return Cells([_always(MOST_BITS) if table is None else table for table in rare])


def _always(bits: int) -> Table:
    """Of a context without entries."""
    return Table(np.array([1 << bits]), bits)

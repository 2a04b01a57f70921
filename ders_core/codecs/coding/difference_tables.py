"""Tables of all contexts of a stream of differences: made of counts, and read again."""

from __future__ import annotations

from functools import cache

from ders_core.codecs.coding import plain_tables
from ders_core.codecs.coding.context_tables import (
    COARSER,
    FARTHEST,
    MOST_LOW,
    ReadTables,
    WriteTables,
)
from ders_core.codecs.coding.differences import CONTEXTS, Split
from ders_core.codecs.coding.frequencies import eighths, log_table
from ders_core.codecs.coding.level_tables import RARE as RARE_SHARE
from ders_core.codecs.coding.rans import BITS, MOST_BITS, MOST_CELLS, CellsToPop, CellsToPush
from ders_core.codecs.coding.stream import MOST_DIGITS, Reader
from ders_core.compute import kernels
from ders_core.later import np

ROOM = CONTEXTS * (2 * FARTHEST + 2)
"""For the cells of usual or of rare levels."""

NUMBER_BYTES = 3
"""Of a frequency, twice and one more."""


def written_tables(lows: np.ndarray, counts: np.ndarray) -> WriteTables:
    """Tables with as many low bits more as make the stream smallest. lows: how many low bits are
    noise, int64 `[CONTEXTS]`. counts: as of `Base.codes` with FARTHEST; is overwritten."""
    if not kernels.takes():
        return plain_tables.written_tables(lows, counts)
    from ders_core.compute.kernels import context_tables as loops

    lows, firsts, spans = lows.copy(), np.empty_like(lows), np.empty_like(lows)
    code = np.empty(CONTEXTS, np.int64)
    counted = loops.windows(counts, COARSER, log_table(), lows, firsts, spans, code)
    room, width = int(spans.sum()) + 2 * CONTEXTS, counted.shape[1] + 1
    info, rare_info = np.empty((2, room), np.uint32)
    inverse, rare_inverse = np.empty((2, room), np.uint64)
    usual_cells, rare_cells = np.empty((2, CONTEXTS, width), np.int32)
    escapes, totals = np.empty(CONTEXTS, np.int32), np.empty(8, np.int64)
    head = np.empty(NUMBER_BYTES * room + 5 * MOST_DIGITS * CONTEXTS, np.uint8)
    tables = info, inverse, rare_info, rare_inverse, usual_cells, rare_cells, escapes, head, totals
    shares = RARE_SHARE, BITS, MOST_BITS, _eighths()
    loops.lay_out(counted, *shares, lows, firsts, spans, *tables)
    head_bytes, noise_bits, rare, far, taken, usual_count, rare_count, several = totals.tolist()
    cells = usual_cells, rare_cells, escapes
    return WriteTables(
        Split(lows, firsts, spans, *cells, noise_bits, rare, far),
        CellsToPush(BITS, info[:usual_count], inverse[:usual_count]),
        CellsToPush(MOST_BITS, rare_info[:rare_count], rare_inverse[:rare_count]),
        head[:head_bytes],
        code,
        taken,
        several > 0,
    )


def read_tables(reader: Reader) -> ReadTables:
    """What is written of them. Raises CodecError for what no stream can say."""
    if not kernels.takes():
        return plain_tables.read_tables(reader)
    from ders_core.compute.kernels.context_slots import take

    lows, cells = np.empty(CONTEXTS, np.int64), np.empty(4, np.int64)
    slots = np.empty((CONTEXTS, 1 << BITS), np.uint16)
    rare_slots = np.empty((CONTEXTS, 1 << MOST_BITS), np.uint16)
    info, rare_info = np.empty((2, ROOM), np.uint32)
    uppers, rare_uppers = np.empty((2, ROOM), np.int64)
    rare = rare_slots, rare_info, rare_uppers
    most = MOST_LOW, FARTHEST, BITS, MOST_BITS, MOST_CELLS
    reader.lend(lambda data, at: take(data, at, *most, lows, slots, info, uppers, *rare, cells))
    usual_count, rare_count, several, several_rare = cells.tolist()
    return ReadTables(
        lows,
        CellsToPop(BITS, info[:usual_count], slots, several == 0),
        CellsToPop(MOST_BITS, rare_info[:rare_count], rare_slots, several_rare == 0),
        uppers[:usual_count],
        rare_uppers[:rare_count],
    )


@cache
def _eighths() -> np.ndarray:
    """uint8: of each frequency."""
    return eighths(np.arange((1 << MOST_BITS) + 1)).astype(np.uint8)

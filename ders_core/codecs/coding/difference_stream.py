"""A stream of weights that gives every bit back: how far each is from its base, counted in floats.

docs/format.md has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.codecs.coding.differences import CONTEXTS, PIECE, Base, Split, bits_of
from ders_core.codecs.coding.frequencies import row_bytes
from ders_core.codecs.coding.level_stream import NOTHING_CODED, lanes_log2_of
from ders_core.codecs.coding.level_tables import LevelTables, eighths_of
from ders_core.codecs.coding.rans import (
    BITS,
    MOST_BITS,
    MOST_LANES_LOG2,
    Popper,
    Pusher,
    Table,
    Tables,
)
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.codecs.coding.weights_read import Coded, read_onto
from ders_core.compute.buffers import fresh
from ders_core.later import np, torch

FINE = 64
"""Symbols to one mean distance, at most; finer bits are noise."""

COARSER = 4
"""How many bits more may be noise, where their table would cost more than it saves."""

FARTHEST = 1 << 11
"""Upper parts of differences up to here may have symbols."""

MOST_LOW = 32
FAR_BYTES = 5


def write(form: int, weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor | None:
    """uint8 `[n]`, the first of which is `form`; None if it would take as many bytes as the
    weights. Both: floats `[n]` on the CPU."""
    start, bits = Base(base), bits_of(weight)
    lows = _lows(*start.distances(bits))
    lows, counts = _coarsened(lows, start.codes(bits, lows, FARTHEST))
    noise_bits = int((counts.sum(1) * lows).sum())
    taken = row_bytes(counts).sum() + noise_bits / 8
    if taken + FAR_BYTES * int(counts[:, -1].sum()) >= weight.nbytes:
        return None
    firsts, spans, counted = _windows(counts)
    tables = [
        LevelTables.of(row[: span + 1]) if row.any() else None
        for row, span in zip(counted, spans.tolist(), strict=True)
    ]
    split = Split(lows, firsts, spans, _usual(tables), _rare(tables))
    parts = start.split(bits, split, counted)
    writer = Writer()
    writer.put([form], "u1")
    for low, first, span, table in zip(lows, firsts, spans, tables, strict=True):
        writer.put_small([low, 0 if table is None else span + 1])
        if table is not None:
            writer.put_small(_unsigned(np.array([first])))
            table.put(writer)
    writer.put_small([len(parts.far)])
    writer.put_small(_unsigned(parts.far))
    writer.put_small([len(parts.noise)])
    writer.put(parts.noise, "u1")
    if split.usual.alone and split.rare.alone:
        writer.put([NOTHING_CODED], "u1")
        return writer.tensor()
    pairs = zip(counted, tables, strict=True)
    eighths = sum(eighths_of(row, table) for row, table in pairs if table is not None)
    lanes_log2 = lanes_log2_of(eighths // 8)
    pusher = Pusher(1 << lanes_log2, parts.cells.size + parts.rare.size)
    cells = parts.cells, split.usual, parts.rare, split.rare
    pusher.push_pieces(*cells, parts.rare_ends, PIECE)
    states, words = pusher.stack()
    writer.put([lanes_log2], "u1")
    writer.put(states, "<u4")
    writer.put(words, "<u2")
    return writer.tensor()


def read(reader: Reader, base: torch.Tensor) -> torch.Tensor:
    """The weights `[n]` of a stream. base: floats `[n]` on the CPU. Raises CodecError for what no
    stream can hold."""
    start = Base(base)
    lows, firsts, spans = (np.zeros(CONTEXTS, dtype=np.int64) for _ in range(3))
    tables: list[LevelTables | None] = []
    for number in range(CONTEXTS):
        low, levels = reader.small(2)
        if low > MOST_LOW or levels > 2 * FARTHEST + 1:
            raise damaged()
        lows[number], spans[number] = low, levels - 1
        if levels:
            firsts[number] = _signed(reader.small_array(1))[0]
            if abs(firsts[number]) > FARTHEST:
                raise damaged()
        tables.append(LevelTables.take(reader, levels) if levels else None)
    far = _signed(reader.small_array(reader.small(1)[0]))
    noise = reader.take(reader.small(1)[0], "u1")
    lanes_log2 = reader.number("u1")
    if MOST_LANES_LOG2 < lanes_log2 != NOTHING_CODED:
        raise damaged()
    popper = Popper(
        reader.take(0 if lanes_log2 == NOTHING_CODED else 1 << lanes_log2, "<u4"),
        reader.rest("<u2"),
    )
    split = Split(lows, firsts, spans, _usual(tables), _rare(tables))
    weight = fresh(base.shape, base.dtype)
    read_onto(start, Coded(split, far, noise), popper, bits_of(weight))
    popper.done()
    return weight


def _lows(distances: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many low bits are noise, int64 `[CONTEXTS]`: the most with which a mean distance is FINE
    symbols."""
    lows = [
        max((distance // (count * FINE)).bit_length() - 1, 0) if count else 0
        for distance, count in zip(distances.tolist(), counts.tolist(), strict=True)
    ]
    return np.array(lows, dtype=np.int64)


def _coarsened(lows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with as many low bits more as make the stream smallest: what they take themselves,
    against whole bytes of entropy and of the table."""
    chosen_lows, chosen = lows.copy(), counts
    best, entries = np.full(len(lows), np.iinfo(np.int64).max), counts.sum(1)
    for more in range(COARSER + 1):
        used = np.count_nonzero(counts, axis=1)
        taken = (row_bytes(counts) + entries * more / 8).astype(np.int64) + used + used // 2
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


def _always(bits: int) -> Table:
    """Of a context without entries."""
    return Table(np.array([1 << bits]), bits)


def _usual(tables: Sequence[LevelTables | None]) -> Tables:
    return Tables([_always(BITS) if table is None else table.usual for table in tables])


def _rare(tables: Sequence[LevelTables | None]) -> Tables:
    rare = (None if table is None else table.rare for table in tables)
    return Tables([_always(MOST_BITS) if table is None else table for table in rare])


def _unsigned(numbers: np.ndarray) -> np.ndarray:
    """0, −1, 1, −2 … as 0, 1, 2, 3 …"""
    unsigned: np.ndarray = numbers << 1 ^ numbers >> 63
    return unsigned


def _signed(numbers: np.ndarray) -> np.ndarray:
    """The inverse."""
    signed: np.ndarray = numbers >> 1 ^ -(numbers & 1)
    return signed

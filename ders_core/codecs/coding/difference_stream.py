"""A stream of weights that gives every bit back: how far each is from its base, counted in floats.

docs/format.md has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.codecs.coding.differences import CONTEXTS, Base, Parts, Split, bits_of
from ders_core.codecs.coding.frequencies import entropy_bytes
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
from ders_core.later import np, torch

FINE = 64
"""Symbols to one mean distance, at most; finer bits are noise."""

COARSER = 4
"""How many bits more may be noise, where their table would cost more than it saves."""

FARTHEST = 1 << 11
"""Upper parts of differences up to here may have symbols."""

NOISE_BITS = BITS
"""Low bits at a time."""

MOST_LOW = 32
FAR_BYTES = 5


def write(weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor | None:
    """uint8 `[n]`; None if it would take as many bytes as the weights. Both: floats `[n]` on the
    CPU."""
    start, bits = Base(base), bits_of(weight)
    lows = _lows(start.distances(bits), start.context_counts)
    lows, counts = _coarsened(lows, start.codes(bits, lows, FARTHEST))
    noise_bits = int((counts.sum(1) * lows).sum())
    taken = sum(entropy_bytes(row) for row in counts) + noise_bits / 8
    if taken + FAR_BYTES * int(counts[:, -1].sum()) >= weight.nbytes:
        return None
    firsts, spans, counted = _windows(counts)
    tables = [
        LevelTables.of(row[: span + 1]) if row.any() else None
        for row, span in zip(counted, spans.tolist(), strict=True)
    ]
    split = Split(lows, firsts, spans, _rare_ones(tables, counted.shape[1]))
    parts = start.split(bits, split, counted)
    writer = Writer()
    for low, first, span, table in zip(lows, firsts, spans, tables, strict=True):
        writer.put_small([low, 0 if table is None else span + 1])
        if table is not None:
            writer.put_small(_unsigned(np.array([first])))
            table.put(writer)
    writer.put_small([len(parts.far)])
    writer.put_small(_unsigned(parts.far))
    _put_coded(writer, start.contexts, split, tables, parts, counted)
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
        lows[number], spans[number] = low, max(levels - 1, 0)
        if levels:
            firsts[number] = _signed(reader.small_array(1))[0]
        tables.append(LevelTables.take(reader, levels) if levels else None)
    far = _signed(reader.small_array(reader.small(1)[0]))
    lanes_log2 = reader.number("u1")
    if MOST_LANES_LOG2 < lanes_log2 != NOTHING_CODED:
        raise damaged()
    popper = Popper(
        reader.take(0 if lanes_log2 == NOTHING_CODED else 1 << lanes_log2, "<u4"),
        reader.rest("<u2"),
    )
    contexts = start.contexts
    occurring = start.context_counts > 0
    if any(table is None for table, occurs in zip(tables, occurring, strict=True) if occurs):
        raise damaged()
    symbols = popper.pop_mixed(contexts, _usual(tables))
    of_contexts = start.contexts_of_rare(symbols, spans)
    rare = popper.pop_mixed(of_contexts, _rare(tables))
    noise = _popped_noise(contexts, lows * occurring, popper)
    popper.done()
    split = Split(lows, firsts, spans, np.empty(0))
    return start.join(split, Parts(symbols, noise, rare, of_contexts, far))


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
    chosen_lows, chosen = lows.copy(), counts.copy()
    for number in np.flatnonzero(counts.any(1)):
        row, best = counts[number], None
        for more in range(COARSER + 1):
            used = int(np.count_nonzero(row))
            taken = int(entropy_bytes(row) + row.sum() * more / 8) + used + used // 2
            if best is None or taken < best:
                best = taken
                chosen_lows[number], chosen[number] = lows[number] + more, row
            halved = np.zeros_like(row)
            quarter = (len(row) - 1) // 4
            halved[quarter : 3 * quarter] = row[:-1].reshape(-1, 2).sum(1)
            halved[-1] = row[-1]
            row = halved
    return chosen_lows, chosen


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


def _rare_ones(tables: Sequence[LevelTables | None], width: int) -> np.ndarray:
    of_rare = np.zeros((CONTEXTS, width), dtype=bool)
    for row, table in zip(of_rare, tables, strict=True):
        if table is not None and table.rare is not None:
            row[: len(table.rare.frequencies)] = table.rare.frequencies > 0
    return of_rare


def _always(bits: int) -> Table:
    """Of a context without entries."""
    return Table(np.array([1 << bits]), bits)


def _usual(tables: Sequence[LevelTables | None]) -> Tables:
    return Tables([_always(BITS) if table is None else table.usual for table in tables])


def _rare(tables: Sequence[LevelTables | None]) -> Tables:
    rare = (None if table is None else table.rare for table in tables)
    return Tables([_always(MOST_BITS) if table is None else table for table in rare])


def _uniform(lows: np.ndarray, begin: int) -> Tables:
    """Of the low bits from `begin` on."""
    bits = np.clip(lows - begin, 0, NOISE_BITS).tolist()
    return Tables([Table(np.full(1 << low, 1 << BITS - low)) for low in bits])


def _put_coded(
    writer: Writer,
    contexts: np.ndarray,
    split: Split,
    tables: Sequence[LevelTables | None],
    parts: Parts,
    counted: np.ndarray,
) -> None:
    """Lanes and words."""
    pushes = [
        (parts.symbols, contexts, _usual(tables)),
        (parts.rare, parts.of_contexts, _rare(tables)),
    ]
    for begin in range(0, int(split.lows.max()), NOISE_BITS):
        low = parts.noise >> np.uint32(begin) & np.uint32((1 << NOISE_BITS) - 1)
        pushes.append((low.astype(np.uint16), contexts, _uniform(split.lows, begin)))
    pushes = [push for push in pushes if push[0].size and not push[2].alone]
    taken = sum(eighths_of(row, table) for row, table in zip(counted, tables, strict=True) if table)
    bits = taken // 8 + int((counted.sum(1) * split.lows).sum())
    lanes_log2 = lanes_log2_of(bits) if pushes else NOTHING_CODED
    writer.put([lanes_log2], "u1")
    if pushes:
        pusher = Pusher(1 << lanes_log2)
        for push in reversed(pushes):
            pusher.push_mixed(*push)
        states, words = pusher.stack()
        writer.put(states, "<u4")
        writer.put(words, "<u2")


def _popped_noise(contexts: np.ndarray, lows: np.ndarray, popper: Popper) -> np.ndarray:
    """The low bits: uint32 `[n]`, or `[0]` where there are none."""
    if not lows.any():
        return np.zeros(0, dtype=np.uint32)
    noise = popper.pop_mixed(contexts, _uniform(lows, 0)).astype(np.uint32)
    for begin in range(NOISE_BITS, int(lows.max()), NOISE_BITS):
        popped = popper.pop_mixed(contexts, _uniform(lows, begin))
        noise |= popped.astype(np.uint32) << np.uint32(begin)
    return noise


def _unsigned(numbers: np.ndarray) -> np.ndarray:
    """0, −1, 1, −2 … as 0, 1, 2, 3 …"""
    unsigned: np.ndarray = numbers << 1 ^ numbers >> 63
    return unsigned


def _signed(numbers: np.ndarray) -> np.ndarray:
    """The inverse."""
    signed: np.ndarray = numbers >> 1 ^ -(numbers & 1)
    return signed

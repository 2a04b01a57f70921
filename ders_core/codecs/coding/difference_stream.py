"""A stream of weights that gives every bit back: how far each is from its base, counted in floats.

docs/format.md has the rules.
"""

from __future__ import annotations

from ders_core.codecs.coding.context_tables import FARTHEST
from ders_core.codecs.coding.difference_tables import read_tables, written_tables
from ders_core.codecs.coding.differences import PIECE, Base, bits_of
from ders_core.codecs.coding.frequencies import LOG_BITS
from ders_core.codecs.coding.level_stream import NOTHING_CODED, lanes_log2_of
from ders_core.codecs.coding.rans import MOST_CELLS, MOST_LANES_LOG2, Popper, Pusher
from ders_core.codecs.coding.signed import signed, unsigned
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.codecs.coding.weights_read import Coded, read_onto
from ders_core.compute.buffers import fresh
from ders_core.later import np, torch

FINE = 64
"""Symbols to one mean distance, at most; finer bits are noise."""

FAR_BYTES = 5


def write(form: int, weight: torch.Tensor, base: torch.Tensor) -> torch.Tensor | None:
    """uint8 `[n]`, the first of which is `form`; None if it would take as many bytes as the
    weights, or more cells than have numbers. Both: floats `[n]` on the CPU."""
    start, bits = Base(base), bits_of(weight)
    lows = _lows(*start.distances(bits))
    tables = written_tables(lows, start.codes(bits, lows, FARTHEST))
    split = tables.split
    taken = (int(tables.code_logs.sum()) >> LOG_BITS) + split.noise_bits
    if taken + 8 * FAR_BYTES * split.far_count >= 8 * weight.nbytes:
        return None
    if tables.rare.info.size > MOST_CELLS:  # of usual ones there cannot be more
        return None
    parts = start.split(bits, split)
    writer = Writer()
    writer.put([form], "u1")
    writer.put(tables.head, "u1")
    writer.put_small([len(parts.far)])
    writer.put_small(unsigned(parts.far))
    writer.put_small([len(parts.noise)])
    writer.put(parts.noise, "u1")
    if not tables.takes_bits:
        writer.put([NOTHING_CODED], "u1")
        return writer.tensor()
    lanes_log2 = lanes_log2_of(tables.eighths // 8)
    pusher = Pusher(1 << lanes_log2, parts.cells.size + parts.rare.size)
    cells = parts.cells, tables.usual, parts.rare, tables.rare
    pusher.push_pieces(*cells, parts.rare_ends, PIECE)
    states, words = pusher.stack()
    writer.put([lanes_log2], "u1")
    writer.put(states, "<u4")
    writer.put(words, "<u2")
    return writer.tensor()


def read(reader: Reader, base: torch.Tensor) -> torch.Tensor:
    """The weights `[n]` of a stream. base: floats `[n]` on the CPU. Raises CodecError for what no
    stream can hold."""
    start, tables = Base(base), read_tables(reader)
    far = signed(reader.small_array(reader.small(1)[0]))
    noise = reader.lent(reader.small(1)[0])
    lanes_log2 = reader.number("u1")
    if MOST_LANES_LOG2 < lanes_log2 != NOTHING_CODED:
        raise damaged()
    popper = Popper(
        reader.take(0 if lanes_log2 == NOTHING_CODED else 1 << lanes_log2, "<u4"),
        reader.rest("<u2"),
    )
    weight = fresh(base.shape, base.dtype)
    read_onto(start, Coded(tables, far, noise), popper, bits_of(weight))
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

"""A stream of entries that have a few levels, each times the step of its row and column.

docs/format.md has the rules; `sections.py` codes the entries of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ders_core.codecs.coding import runs
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.entries import CodedEntries
from ders_core.codecs.coding.frequencies import entropy_bytes, frequencies_of, row_bytes
from ders_core.codecs.coding.gains import Gains
from ders_core.codecs.coding.level_tables import MOST_LEVELS, Alphabet, Push
from ders_core.codecs.coding.rans import (
    BITS,
    MOST_LANES_LOG2,
    WORD_BITS,
    Popper,
    Pusher,
    Table,
    symbol_dtype,
)
from ders_core.codecs.coding.sections import Head, Room, read_section, section_of
from ders_core.codecs.coding.steps import LARGEST, MOST_CLASSES, SMALLEST, Steps
from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.compute.buffers import fresh_array
from ders_core.later import np, torch

MARK = 0xFFFF
"""The first two bytes: no stream of an earlier form begins with them."""

FORM = 2
"""The place of the byte that says what a stream has."""

LEAST_BYTES = 12
"""Enough for a stream of zeros with even steps."""

LEAST_CLASSED_BYTES = 40
"""Enough for a stream of zeros with steps of their own."""

WITH_STEPS, WITH_GAINS = 16, 32
"""Added to the number that says of how many lanes a stream is."""

NOTHING_CODED = 15

ABOUT_HEAD = 9
"""Bytes of what a class says besides its frequencies."""

BYTES_PER_LANE = 1 << 13
"""A lane costs about 3 bytes, and more of them decode faster without a compiler."""


def stream_bytes(steps: Steps | None, counts: np.ndarray, slack: float = 1.0) -> float:
    """About the bytes of a stream with these counts `[classes, codes]`. slack: what the coder takes
    for each bit of entropy."""
    occurring = counts[:, counts.sum(0) > 0]
    several = (occurring > 0).sum(1) > 1
    tables = ABOUT_HEAD * int(several.sum()) + _table_bytes(occurring[several])
    factors = 0.0 if steps is None else 1 + factor_bytes(steps)
    coded = slack * float(sum(row_bytes(occurring[several]).tolist()))
    lanes = 4 + 3 * coded / BYTES_PER_LANE if several.any() or steps is not None else 0
    alone = 2 * int((~several).sum()) if occurring.size else 0
    return float(5 + 4 * occurring.shape[1]) + alone + tables + factors + coded + lanes


def _table_bytes(counts: np.ndarray) -> float:
    """About those of frequencies from the first level that occurs to the last: one each, two where
    they are 1/64 or more."""
    if not counts.size:
        return 0.0
    occurring = counts > 0
    spans = counts.shape[1] - occurring.argmax(1) - occurring[:, ::-1].argmax(1)
    return float(spans.sum() + (64 * counts >= counts.sum(1)[:, None]).sum())


def factor_bytes(steps: Steps) -> float:
    """Bytes of the factors of rows and columns, with their tables."""
    return sum(
        4 + float((1 + (32 * counts > counts.sum())).sum()) + entropy_bytes(counts)
        for _, counts in steps.counted
    )


def write(
    steps: Steps | None,
    levels: np.ndarray,
    common: int,
    classes: Sequence[np.ndarray],
    counts: np.ndarray,
    codes: np.ndarray | None = None,
) -> Writer:
    """What the stream is made of; nothing in it is of the classes.

    levels: float32, that occur. common: the number of the one that runs may be of. classes: which
    level each entry of a class has, uint8 or uint16, in the order of an `Arrangement`. counts: how
    often each occurs there, int64 `[classes, levels]`. codes: int64 `[levels]`, ascending, what
    stands for each level in classes; None: its number.
    """
    alphabet = Alphabet(np.arange(len(levels)) if codes is None else codes)
    pushes: list[Push] = []
    exponents = [] if steps is None else _factor_tables(steps, pushes)
    sections = []
    if len(levels):
        pairs = zip(classes, counts, strict=True)
        sections = [section_of(*pair, common, alphabet) for pair in pairs]
    pushes += [push for section in sections for push in section.pushes]
    pushes = [push for push in pushes if push.table.alone is None]
    bits = sum(push.about_bits() for push in pushes)
    lanes_log2 = lanes_log2_of(bits) if pushes else NOTHING_CODED

    writer = Writer()
    writer.put([MARK], "<u2")
    writer.put([lanes_log2 | (0 if steps is None else WITH_STEPS)], "u1")
    for numbers in exponents:
        writer.put_small(numbers)
    writer.put_small([len(levels), common] if steps is None else [len(levels), common, len(counts)])
    writer.put(levels, "<f4")
    for section in sections:
        section.head(writer)
    if pushes:
        pusher = Pusher(1 << lanes_log2, bits // WORD_BITS)
        for push in reversed(pushes):
            pusher.push(push.symbols, push.table, push.numbers)
        states, words = pusher.stack()
        writer.put(states, "<u4")
        writer.put(words, "<u2")
    return writer


def lanes_log2_of(bits: int) -> int:
    """Of how many lanes a stream of so many bits has. In integers, so that it is the same on every
    machine."""
    return min(max((bits // 8 // BYTES_PER_LANE).bit_length() - 1, 0), MOST_LANES_LOG2)


def is_one(stream: torch.Tensor | np.ndarray) -> bool:
    """Whether the stream has this form, and not one of format versions before 4."""
    return stream[:2].tolist() == [0xFF, 0xFF]


@dataclass(frozen=True)
class _Start:
    """What a stream begins with, up to its classes. exponents: none without steps. levels_end: the
    byte after the levels."""

    lanes_log2: int
    exponents: Sequence[tuple[int, Table | None]]
    levels: np.ndarray
    common: int
    classes: int
    levels_end: int
    gains: Gains | None

    @classmethod
    def take(cls, reader: Reader, shape: tuple[int, int]) -> _Start:
        reader.take(1, "<u2")
        form = reader.number("u1")
        lanes_log2, with_steps = form & WITH_STEPS - 1, bool(form & WITH_STEPS)
        if form >= 2 * WITH_GAINS or MOST_LANES_LOG2 < lanes_log2 != NOTHING_CODED:
            raise damaged()
        exponents = [_take_exponents(reader) for _ in ("rows", "columns")] if with_steps else []
        level_count, common, *class_count = reader.small(3 if with_steps else 2)
        classes = class_count[0] if class_count else 1
        if level_count > MOST_LEVELS or not common < max(level_count, 1) or classes > MOST_CLASSES:
            raise damaged()
        levels = reader.take(level_count, "<f4").astype(np.float32)
        if not np.isfinite(levels).all():
            raise damaged()
        levels_end = reader.position
        gains = Gains.take(reader, shape) if form & WITH_GAINS else None
        return cls(lanes_log2, exponents, levels, common, classes, levels_end, gains)


def with_values(
    stream: torch.Tensor, shape: tuple[int, int], levels: torch.Tensor, gains: Gains | None
) -> torch.Tensor:
    """The same codes of a matrix `[out, in]`, that stand for other levels: a stream of the same
    length, but for gains that it had not. levels: float32, as many as the stream has. gains: None
    if they stay as they are. Raises CodecError for what no stream can hold."""
    reader = Reader(stream)
    start = _Start.take(reader, shape)
    head, end = stream[: start.levels_end].cpu().clone(), reader.position
    raw = np.ascontiguousarray(levels.cpu().numpy().astype("<f4")).view(np.uint8)
    head[len(head) - len(raw) :] = torch.from_numpy(raw)
    section = stream[start.levels_end : end]
    if gains is not None:
        head[FORM] = int(head[FORM]) | WITH_GAINS
        writer = Writer()
        gains.put(writer)
        section = writer.tensor()
    return torch.cat([each.to(stream.device) for each in (head, section, stream[end:])])


def read(
    stream: torch.Tensor, shape: tuple[int, int], weight: torch.Tensor | None = None
) -> CodedEntries:
    """Decode the levels of all entries of a matrix `[out, in]`. weight: memory in bfloat16 for
    `CodedEntries.onto`, in which symbols may lie until then. Raises CodecError for what no stream
    can hold."""
    reader = Reader(stream)
    opened = _Opened.of(reader, shape, reader.rest)
    start, popper = opened.start, opened.popper
    room, sections = opened.room(weight), []
    begin = others_begin = 0
    for head, size in zip(opened.heads, opened.sizes, strict=True):
        if head.has_symbols(start.common):
            filled = room.symbols[begin : begin + size]
            sections.append(head.pop(size, popper, filled, None))
            begin += size
            continue
        others = slice(others_begin, others_begin + head.count + 1)
        popped = head.pop(size, popper, room.others[others], room.places[others])
        sections.append(popped)
        others_begin += len(popped.symbols) + 1
    popper.done()
    factors = opened.steps, start.gains
    entries = opened.arrangement, *factors, start.levels, start.common
    return CodedEntries.of(*entries, sections, room)


@dataclass(frozen=True)
class About:
    """What the first bytes of a stream tell. levels: how many. others: about how many entries do
    not have the common one, to a thousandth of all. has_factors: whether rows and columns have
    steps or gains."""

    levels: int
    others: int
    has_factors: bool


def about(begin: np.ndarray, shape: tuple[int, int]) -> About:
    """begin: the first bytes of a stream, uint8. Raises CodecError if they are too few, or no
    stream's."""
    reader = Reader(begin)
    opened = _Opened.of(reader, shape, lambda dtype: reader.take(reader.left // 2, dtype))
    pairs = zip(opened.heads, opened.sizes, strict=True)
    others = sum(head.others(size, opened.start.common) for head, size in pairs)
    has_factors = opened.steps is not None or opened.start.gains is not None
    return About(len(opened.start.levels), round(others), has_factors)


@dataclass(frozen=True)
class _Opened:
    """A stream up to its entries. sizes: how many entries each class of `heads` has."""

    start: _Start
    heads: Sequence[Head]
    popper: Popper
    steps: Steps | None
    arrangement: Arrangement
    sizes: Sequence[int]

    @classmethod
    def of(
        cls, reader: Reader, shape: tuple[int, int], words: Callable[[str], np.ndarray]
    ) -> _Opened:
        """words: takes the stack's from the reader."""
        start = _Start.take(reader, shape)
        level_count = len(start.levels)
        classes = range(start.classes if level_count else 0)
        heads = [read_section(reader, level_count) for _ in classes]
        lanes = 0 if start.lanes_log2 == NOTHING_CODED else 1 << start.lanes_log2
        popper = Popper(reader.take(lanes, "<u4"), words("<u2"))
        steps = _popped_steps(shape, start.exponents, popper) if start.exponents else None
        arrangement = Arrangement.of(shape, steps)
        is_empty = not shape[0] * shape[1]
        if arrangement.class_count != start.classes or not (level_count or is_empty):
            raise damaged()
        sizes = arrangement.sizes.tolist() if heads else []
        return cls(start, heads, popper, steps, arrangement, sizes)

    def room(self, weight: torch.Tensor | None) -> Room:
        """For what sections have. weight: as of `read`. Raises CodecError if one has more others
        than entries."""
        count, most_others, common = 0, 0, self.start.common
        for head, size in zip(self.heads, self.sizes, strict=True):
            if head.has_symbols(common):
                count += size
                continue
            if head.count > size:
                raise damaged()
            most_others += head.count + 1
        dtype = symbol_dtype(len(self.start.levels) + 1)  # one more says that a level is rare
        places = fresh_array(most_others, runs.place_dtype(sum(self.sizes)))
        others = fresh_array(most_others, dtype)
        if weight is None or self.steps is not None or count < weight.numel():
            return Room(fresh_array(count, dtype), others, places)
        # at the end of the memory: a row is read before it is overwritten, by it or one before it
        memory = weight.view(-1).view(torch.uint8).numpy()
        begin = memory.size - count * np.dtype(dtype).itemsize
        return Room(memory[begin:].view(dtype), others, places)


# the factors of rows and columns: their exponents


def _factor_tables(steps: Steps, pushes: list[Push]) -> list[list[int]]:
    """The numbers that say the tables of rows and columns; adds to pushes."""
    numbers = []
    for vector, counted in zip((steps.rows, steps.columns), steps.counted, strict=True):
        lowest, counts = counted
        if not len(counts):
            numbers.append([0, 0])
            continue
        frequencies = frequencies_of(counts, BITS)
        symbols = (vector - lowest).astype(symbol_dtype(len(counts)))
        pushes.append(Push(symbols, Table(frequencies), counts))
        numbers.append([lowest - SMALLEST, len(counts), *frequencies.tolist()])
    return numbers


def _take_exponents(reader: Reader) -> tuple[int, Table | None]:
    start, span = reader.small(2)
    if start + span > LARGEST - SMALLEST + 1:
        raise damaged()
    return start + SMALLEST, Table(np.array(reader.small(span))) if span else None


def _popped_steps(
    shape: tuple[int, int], exponents: Sequence[tuple[int, Table | None]], popper: Popper
) -> Steps:
    vectors = []
    for length, (lowest, table) in zip(shape, exponents, strict=True):
        if length and table is None:
            raise damaged()
        symbols = popper.pop(length, table) if table is not None else np.empty(0, np.uint8)
        vectors.append(symbols.astype(np.int64) + lowest)
    return Steps(*vectors)

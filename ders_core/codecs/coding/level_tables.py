"""How often levels come: a table of usual ones, and one of those that are rare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.frequencies import eighths, frequencies_of
from ders_core.codecs.coding.rans import BITS, MOST_BITS, Popper, Table
from ders_core.codecs.coding.stream import Reader, Writer, damaged, small_lengths
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np

MOST_LEVELS = 1 << MOST_BITS
"""Each has a slot even where all are rare."""

RARE = 1 << BITS - 1
"""A level that fewer than one entry in so many has is rare."""


@dataclass(frozen=True)
class Push:
    """What goes to the stack at once. counts: how often each symbol of the table occurs, int64.
    numbers: as of `Pusher.push`."""

    symbols: np.ndarray
    table: Table
    counts: np.ndarray
    numbers: np.ndarray | None = None

    def about_bits(self) -> int:
        """What it takes, to an eighth of a bit a symbol, in integers."""
        return _eighths(self.counts, self.table) // 8


@dataclass(frozen=True)
class Alphabet:
    """codes: int64 `[levels]`, ascending, below 2^16: which code stands for each level."""

    codes: np.ndarray

    @cached_property
    def numbers(self) -> np.ndarray:
        """uint16: the number of each code's level."""
        numbers = np.zeros(int(self.codes.max(initial=-1)) + 1, dtype=np.uint16)
        numbers[self.codes] = np.arange(len(self.codes))
        return numbers


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
        first, numbers = self._numbers
        writer.put_small([first, len(numbers)])
        writer.put_small(numbers)

    @property
    def nbytes(self) -> int:
        """Of what `put` writes."""
        first, numbers = self._numbers
        head = small_lengths(np.array([first, len(numbers)]))
        return int(head.sum() + small_lengths(numbers).sum())

    @property
    def _numbers(self) -> tuple[int, np.ndarray]:
        """The first level that occurs, and what is written of each from there on."""
        numbers = 2 * self.usual.frequencies[:-1]
        if self.rare is not None:
            rare = self.rare.frequencies
            numbers = np.where(rare > 0, 2 * rare + 1, numbers)
        used = np.flatnonzero(numbers)
        first, end = int(used[0]), int(used[-1]) + 1
        return first, numbers[first:end]

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

    def pushes(self, codes: np.ndarray, counts: np.ndarray, alphabet: Alphabet) -> list[Push]:
        """What is popped one after another. codes: uint8 or uint16, of the alphabet. counts: how
        often each level occurs."""
        numbers = alphabet.numbers
        if self.rare is None:
            return [Push(codes, self.usual, np.append(counts, 0), numbers)]
        of_rare = self.rare.frequencies > 0
        of_usual = np.append(np.where(of_rare, 0, counts), counts[of_rare].sum())
        common = int(alphabet.codes[of_usual[:-1].argmax()])
        rare = rare_ones(codes, alphabet.codes[of_rare], int(of_usual[-1]), common)
        usual_numbers = np.where(of_rare[numbers], np.uint16(len(of_rare)), numbers)
        return [
            Push(codes, self.usual, of_usual, usual_numbers),
            Push(rare, self.rare, np.where(of_rare, counts, 0), numbers),
        ]

    def fill(self, symbols: np.ndarray, popper: Popper) -> None:
        """Pop numbers of levels into uint16 `[n]`, or uint8 where that holds one more."""
        popper.fill(symbols, self.usual)
        if self.rare is None:
            return
        escape = symbols.dtype.type(len(self.rare.frequencies))
        if kernels.takes():
            from ders_core.compute.kernels.rare import count, put

            rare = fresh_array(count(symbols, escape), symbols.dtype.type)
            popper.fill(rare, self.rare)
            word = np.uint32 if symbols.itemsize == 1 else np.uint64
            words = symbols[: symbols.size // 4 * 4].view(word)
            put(symbols, words, escape, np.uint64(np.ones(4, symbols.dtype).view(word)[0]), rare)
            return
        places = np.flatnonzero(symbols == escape)
        rare = np.empty(len(places), symbols.dtype)
        popper.fill(rare, self.rare)
        symbols[places] = rare


def rare_ones(codes: np.ndarray, rare: np.ndarray, count: int, common: int) -> np.ndarray:
    """The codes that are rare, in order: `[count]`, uint8 or uint16 as the codes are. rare: int64,
    ascending, which are. common: a code that many have."""
    is_rare = np.zeros(1 << 8 * codes.itemsize, dtype=bool)
    is_rare[rare] = True
    if is_rare[common] or not kernels.takes():
        rare_codes: np.ndarray = codes[is_rare[codes]]
        return rare_codes
    from ders_core.compute.kernels.rare import pick

    edges = np.concatenate([[-1], rare, [len(is_rare)]])
    after = int(np.searchsorted(rare, common)) + 1
    usual = codes.dtype.type(edges[after - 1] + 1), codes.dtype.type(edges[after] - 1)
    found = fresh_array(count + 1, codes.dtype.type)
    pick(codes, is_rare, *usual, found)
    return found[:-1]

"""Interleaved entropy coding with asymmetric numeral systems (Duda, arXiv 1311.2540; interleaved:
Giesen, arXiv 1402.3392), in integer arithmetic alone.

A stack of many lanes, each a number x: symbol t of what is pushed at once goes to lane t mod lanes.
A symbol with the slots [c, c + f) of 2^bits turns x into ⌊x / f⌋·2^bits + c + x mod f; before that,
16 bits of x become a word where x would grow beyond 32 bits. What is pushed last is popped first.
Each symbol takes the binary logarithm of 2^bits / f, to a few thousandths of a per cent.

Here is numpy, which works on all lanes at once; `compute.kernels.rans` gives the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.stream import damaged
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np

BITS = 12
"""Of frequencies: tables stay in the nearest cache."""

MOST_BITS = 14
"""States have at least two bits more, so that rounding costs nothing to speak of."""

MOST_CELLS = 1 << 16
"""Of several tables: so many have numbers of their own."""

START = 1 << 16
"""The state of each lane before anything is pushed: the least that a lane may have."""

MOST_LANES_LOG2 = 10

WORD_BITS = 16

PIECE = 1 << 16
"""Symbols that are pushed before there must be room for the next ones; lanes divide it."""


def symbol_dtype(count: int) -> type[np.generic]:
    """Of so many symbols: uint8, or uint16."""
    return np.uint8 if count <= 1 << 8 else np.uint16


class Table:
    """frequencies: int64 `[symbols]`, that sum to 2^bits. Raises CodecError if they do not."""

    def __init__(self, frequencies: np.ndarray, bits: int = BITS) -> None:
        small = frequencies.size and frequencies.min() >= 0 and frequencies.max() <= 1 << bits
        if not small or int(frequencies.sum()) != 1 << bits or bits > MOST_BITS:
            raise damaged()
        self.bits = bits
        self.frequencies = frequencies
        top = int(frequencies.argmax())
        self.alone = top if int(frequencies[top]) == 1 << bits else None
        """The symbol that takes all slots, and no bits; None where there are several."""

    @property
    def dtype(self) -> type[np.generic]:
        """The narrower one of uint8 and uint16 that holds all symbols."""
        return symbol_dtype(len(self.frequencies))

    @cached_property
    def info(self) -> np.ndarray:
        """uint32 `[symbols]`: the frequency, and above 16 bits the first slot."""
        first = np.cumsum(self.frequencies) - self.frequencies
        packed: np.ndarray = (self.frequencies | first << 16).astype(np.uint32)
        return packed

    @cached_property
    def slots(self) -> np.ndarray:
        """uint16 `[2^bits]`: the symbol of each slot."""
        return np.repeat(np.arange(len(self.frequencies), dtype=np.uint16), self.frequencies)

    @cached_property
    def inverse(self) -> np.ndarray:
        """uint64 `[symbols]`: see `compute.kernels.rans.push`; 0 where no slot is a symbol's."""
        top, divisor = 1 << 32 + self.bits, np.maximum(self.frequencies, 1)
        inverse: np.ndarray = -(-top // divisor) * (self.frequencies > 0)
        return inverse.astype(np.uint64)


@dataclass(frozen=True)
class CellsToPush:
    """Several tables of as many bits: which one a symbol has, its context says. Their symbols of a
    frequency above 0 are *cells*, counted from one table to the next; there are at most MOST_CELLS.

    info: uint32 `[cells]`, inverse: uint64 `[cells]`, as of a table.
    """

    bits: int
    info: np.ndarray
    inverse: np.ndarray


@dataclass(frozen=True)
class CellsToPop:
    """The same to read with. slots: uint16 `[contexts, 2^bits]`, the cell of each slot. alone:
    whether symbols take no bits."""

    bits: int
    info: np.ndarray
    slots: np.ndarray
    alone: bool


class Pusher:
    """A stack to push to. lanes: a power of two. words: about how many it will have, or at most;
    for more it takes other memory. `push_pieces` needs room for one word a symbol."""

    def __init__(self, lanes: int, words: int) -> None:
        self._states = np.full(lanes, START, dtype=np.uint32)
        self._room = fresh_array(words + PIECE, np.uint16)  # filled from its end on
        self._at = len(self._room)

    def push(self, symbols: np.ndarray, table: Table, numbers: np.ndarray | None = None) -> None:
        """symbols: uint8 or uint16 `[n]`, which occur in the table; they are popped in this order.
        numbers: which symbol of the table each stands for; None: itself."""
        if table.alone is not None or not symbols.size:
            return
        info = table.info if numbers is None else table.info[numbers]
        inverse = table.inverse if numbers is None else table.inverse[numbers]
        symbols = np.ascontiguousarray(symbols)
        for begin in reversed(range(0, len(symbols), PIECE)):
            piece = symbols[begin : begin + PIECE]
            self._make_room(len(piece))
            if not kernels.takes():
                self._push_plainly(piece, info, table.bits)
                continue
            from ders_core.compute.kernels import rans

            given = info, inverse, table.bits, piece
            self._at = rans.push(self._states, *given, self._room, self._at)

    def _make_room(self, symbols: int) -> None:
        """For so many more: each becomes a word at most."""
        if self._at > symbols:
            return
        filled = self._room[self._at :]
        self._room = fresh_array(symbols + PIECE + len(self._room) * 5 // 4, np.uint16)
        self._at = len(self._room) - len(filled)
        self._room[self._at :] = filled

    def push_pieces(
        self,
        cells: np.ndarray,
        usual: CellsToPush,
        rare_cells: np.ndarray,
        rare: CellsToPush,
        rare_ends: np.ndarray,
        size: int,
    ) -> None:
        """Cells of the usual tables, uint16 `[n]`, so many at a time; after each piece the rare
        cells that belong to it, up to its end, int64, among all of them."""
        self._make_room(len(cells) + len(rare_cells))
        begins = [0, *rare_ends.tolist()[:-1]]
        if not kernels.takes():
            for number in reversed(range(len(rare_ends))):
                of_piece = slice(begins[number], int(rare_ends[number]))
                self._push_plainly(rare_cells[of_piece], rare.info, rare.bits)
                piece = cells[number * size : (number + 1) * size]
                self._push_plainly(piece, usual.info, usual.bits)
            return
        from ders_core.compute.kernels import rans

        of_usual, of_rare = ((tables.info, tables.inverse, tables.bits) for tables in (usual, rare))
        given = *of_usual, cells, *of_rare, rare_cells, rare_ends, size
        self._at = rans.push_pieces(self._states, *given, self._room, self._at)

    def _push_plainly(self, symbols: np.ndarray, info: np.ndarray, bits: int) -> None:
        """The same as a loop does. info: uint32, of each symbol."""
        wide = info.astype(np.uint64)
        frequencies, firsts = wide & 0xFFFF, wide >> 16
        lanes, states = len(self._states), self._states.astype(np.uint64)
        words = []
        for begin in reversed(range(0, len(symbols), lanes)):
            some = symbols[begin : begin + lanes]
            frequency, state = frequencies[some], states[: len(some)]
            full = state >> (32 - bits) >= frequency
            words.append(state[full].astype(np.uint16))
            state = np.where(full, state >> 16, state)
            quotient = state // frequency
            moved = (quotient << bits) + firsts[some] + (state - quotient * frequency)
            states[: len(some)] = moved
        self._states = states.astype(np.uint32)
        pushed = np.concatenate([np.empty(0, np.uint16), *words[::-1]])
        self._room[self._at - len(pushed) : self._at] = pushed
        self._at -= len(pushed)

    def stack(self) -> tuple[np.ndarray, np.ndarray]:
        """(states uint32 `[lanes]`, words uint16 `[n]`)."""
        return self._states, self._room[self._at :]


class Popper:
    """A stack to pop from: states uint32 `[lanes]`, words uint16 `[n]`, which are copied. Raises
    CodecError for states that no stack can have."""

    def __init__(self, states: np.ndarray, words: np.ndarray) -> None:
        if states.size and states.min() < START:
            raise damaged()
        self._states = states.astype(np.uint32)
        self._end, self._at = len(words), 0
        spare = max(len(states), 1)  # loops read so many words behind the last; `lend` has a lane
        self._words = fresh_array(len(words) + spare, np.uint16)
        self._words[: len(words)], self._words[len(words) :] = words, 0

    def pop(self, count: int, table: Table) -> np.ndarray:
        """`[count]` of `table.dtype`, symbols of a frequency above 0. Raises CodecError if too few
        words are left."""
        symbols = fresh_array(count, table.dtype)
        self.fill(symbols, table)
        return symbols

    def fill(self, symbols: np.ndarray, table: Table) -> None:
        """The same into an array, uint8 where that holds all symbols of the table, or uint16."""
        if table.alone is not None or not symbols.size:
            symbols.fill(table.alone or 0)
            return
        self._check_lanes()
        if not kernels.takes():
            contexts = np.zeros(symbols.size, dtype=np.uint8)
            self._pop_plainly(symbols, contexts, table.slots, table.info, table.bits)
            return
        from ders_core.compute.kernels import rans

        tables = table.slots, table.info, table.bits
        at = rans.pop(self._states, *tables, self._words, self._at, self._end, symbols)
        self._move_to(at)

    def pop_mixed(self, contexts: np.ndarray, tables: CellsToPop) -> np.ndarray:
        """Cells, uint16 `[n]`, without a loop. contexts: uint8 `[n]`, which table each has."""
        if tables.alone or not contexts.size:
            alone: np.ndarray = tables.slots[:, 0][contexts]
            return alone
        self._check_lanes()
        cells = np.empty(contexts.size, dtype=np.uint16)
        self._pop_plainly(cells, contexts, tables.slots, tables.info, tables.bits)
        return cells

    @property
    def has_lanes(self) -> bool:
        return bool(self._states.size)

    def lend(self, read: Callable[[np.ndarray, np.ndarray, int, int], int]) -> None:
        """Let a loop pop. read: takes states, words, and where those that are left begin and end,
        and returns where they begin then. Without lanes it may pop what takes no bits."""
        states = self._states if self.has_lanes else np.full(1, START, dtype=np.uint32)
        self._move_to(read(states, self._words, self._at, self._end))

    def _check_lanes(self) -> None:
        if not self.has_lanes:
            raise damaged()

    def _move_to(self, at: int) -> None:
        if not 0 <= at <= self._end:
            raise damaged()
        self._at = at

    def _pop_plainly(
        self,
        symbols: np.ndarray,
        contexts: np.ndarray,
        slots: np.ndarray,
        info: np.ndarray,
        bits: int,
    ) -> None:
        """The same as a loop does. slots: `[contexts · 2^bits]` of any shape, numbers of info."""
        count, lanes = len(symbols), len(self._states)
        symbol_of, frequencies, firsts = slots.reshape(-1), info & 0xFFFF, info >> 16
        for begin in range(0, count, lanes):
            state = self._states[: count - begin]
            context = contexts[begin : begin + lanes].astype(np.int64)
            slot = state & np.uint32((1 << bits) - 1)
            symbol = symbol_of[(context << bits) + slot]
            symbols[begin : begin + lanes] = symbol
            state = frequencies[symbol] * (state >> np.uint32(bits)) + slot - firsts[symbol]
            short = np.flatnonzero(state < START)
            self._move_to(self._at + len(short))
            words = self._words[self._at - len(short) : self._at]
            state[short] = state[short] << np.uint32(16) | words
            self._states[: count - begin] = state

    def done(self) -> None:
        """Raise CodecError unless everything was popped that was pushed."""
        if self._at != self._end or (self._states != START).any():
            raise damaged()

"""All entries of a matrix, and the stream that their codes become."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.entries import CodedEntries
from ders_core.codecs.coding.sections import Popped, Room
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.coding.stream import Writer
from ders_core.codecs.delta_entries import Entries as DeltaEntries
from ders_core.codecs.fitting.rounding import CODES, EXACT_CODES, FARTHEST, Piece, Rounding
from ders_core.codecs.fitting.stored_codes import StoredCodes
from ders_core.compute.pieces import largest_magnitude, row_pieces
from ders_core.compute.threads import each_piece
from ders_core.later import np, torch

SLAB = 1 << 18
"""Values at a time."""

PIECE_BYTES = 16
"""A value that is rounded holds, with what is left of it, its error and its code."""


@dataclass(frozen=True)
class Slab:
    """Some rows. values: float32 `[n]`, in units of their steps; the next slab may overwrite
    them."""

    arrangement: Arrangement
    values: torch.Tensor

    @property
    def begin(self) -> int:
        """How many entries of the matrix come before these."""
        return self.arrangement.first_row * self.arrangement.shape[1]


@dataclass(frozen=True)
class Entries:
    """deltas: on the CPU, as they are. steps: None where all are alike."""

    deltas: DeltaEntries
    steps: Steps | None = None

    @property
    def size(self) -> int:
        return self.deltas.size

    @property
    def class_count(self) -> int:
        return 1 if self.steps is None else self.steps.class_count

    @cached_property
    def arrangement(self) -> Arrangement:
        return Arrangement.of(self.deltas.shape, self.steps)

    @cached_property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What entries are multiplied by to be in units of their steps: of rows `[out]` and of
        columns `[in]`, float32."""
        if self.steps is None:
            out, width = self.deltas.shape
            return torch.ones(out), torch.ones(width)
        return self.steps.inverse()

    @cached_property
    def largest(self) -> float:
        """The largest magnitude, in units of steps; 0 if there are no entries."""
        return max((largest_magnitude(slab.values) for slab in self.slabs()), default=0.0)

    def slabs(self) -> Iterator[Slab]:
        """All entries, a few rows at a time, that stay in cache."""
        room = torch.empty(0)
        for rows in self._rows(1):
            count = (rows.stop - rows.start) * self.deltas.shape[1]
            room = room if self.steps is None or room.numel() >= count else torch.empty(count)
            yield self._slab(rows, room)

    def _rows(self, least: int) -> Iterator[slice]:
        """As many as a slab has, but at least so many."""
        return row_pieces(self.deltas.shape, max(least * self.deltas.shape[1], SLAB))

    def _slab(self, rows: slice, room: torch.Tensor) -> Slab:
        """The entries of some rows, in the room, which is as large. In units of 1 there need be
        none: then they lie where the next ones will be read."""
        width = self.deltas.shape[1]
        values = room[: (rows.stop - rows.start) * width]
        if self.steps is not None:
            of_rows, of_columns = self.factors
            scaled = values.view(rows.stop - rows.start, width)
            self.deltas.read_scaled(rows, of_rows[rows], of_columns, scaled)
        else:
            read = self.deltas.read(slice(rows.start * width, rows.stop * width))
            values = values.copy_(read) if len(room) else read
        return Slab(self.arrangement.of_rows(rows), values)

    def every(self, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each n-th entry: (values float32 in units of their steps, classes int64), `[m]` each."""
        values = self.deltas.every(stride)
        places, width = torch.arange(0, self.size, stride), max(self.deltas.shape[1], 1)
        if self.steps is None:
            return values, torch.zeros_like(places)
        rows, columns = places // width, places % width
        of_rows, of_columns = self.factors
        scaled = (values * of_rows[rows]).mul_(of_columns[columns])
        return scaled, torch.from_numpy(self.steps.classes(rows.numpy(), columns.numpy()))

    def coded_with(self, step: float, rounding: Rounding) -> Coded:
        """All entries with this step."""
        codes = StoredCodes(self.size)
        counts = np.zeros((self.class_count, CODES), dtype=np.int64)
        is_quick = self.steps is None and rounding.rows == 1  # no thread needs help
        alone = threading.Lock()  # what entries are read into is reused, and counts are shared

        def work(rows: slice) -> None:
            room = torch.empty(0 if is_quick else (rows.stop - rows.start) * self.deltas.shape[1])
            with alone:
                slab = self._slab(rows, room)
            coded = rounding.coded(slab.values, step, slab.begin)
            with alone:
                codes.put(coded, slab.arrangement, self._begins(slab), counts)

        if is_quick:
            for rows in self._rows(rounding.rows):
                work(rows)
        else:
            held = PIECE_BYTES * max(rounding.rows * self.deltas.shape[1], SLAB)
            each_piece(work, self._rows(rounding.rows), held)
        return Coded(codes, counts, step, rounding)

    def levels(self, coded: Coded) -> torch.Tensor:
        """What the codes that occur are decoded as, float32, in ascending order of codes."""

        def pieces() -> Iterator[Piece]:
            for slab in self.slabs():
                pairs = zip(self._begins(slab), slab.arrangement.sizes, strict=True)
                classes = [coded.codes.piece(begin, begin + size) for begin, size in pairs]
                if self.steps is None:  # row by row
                    yield slab.values, classes[0]
                    continue
                codes = slab.arrangement.scattered(np.concatenate(classes))
                yield slab.values, codes.reshape(-1)

        return coded.rounding.levels(pieces, coded.total, coded.step)

    def stream_bytes(self, counts: np.ndarray, slack: float = 1.0) -> float:
        """counts: `[classes, CODES]`."""
        return level_stream.stream_bytes(self.steps, counts, slack)

    def decoded(self, coded: Coded, levels: torch.Tensor) -> torch.Tensor:
        """What codes with these levels give back, float32 `[out, in]`, in the matrix's own units.
        levels: of the codes that occur."""
        kept, least = coded.codes.kept, coded.codes.least
        of_codes = np.zeros(CODES, np.float32)
        of_codes[coded.occurring] = levels.numpy()
        sections = [Popped(kept[part]) for part in self.arrangement.classes]
        coded_levels, room = of_codes[least:], Room.of_symbols(kept)
        entries = CodedEntries(self.arrangement, self.steps, None, coded_levels, 0, sections, room)
        return entries.matrix()

    def write(self, coded: Coded, levels: torch.Tensor) -> torch.Tensor:
        """The stream; the codes are gone then, and their counts stay. levels: float32, of the codes
        that occur."""
        occurring = coded.occurring
        counts = coded.counts[:, occurring]
        common = int(counts.sum(0).argmax()) if len(occurring) else 0
        pushed = self._pushed(coded.codes, levels.numpy(), common, counts, occurring)
        coded.codes.drop()
        return pushed.tensor()

    def _pushed(
        self,
        codes: StoredCodes,
        levels: np.ndarray,
        common: int,
        counts: np.ndarray,
        occurring: np.ndarray,
    ) -> Writer:
        classes = [codes.kept[part] for part in self.arrangement.classes]
        given = levels, common, classes, counts, occurring - codes.least
        return level_stream.write(self.steps, *given)

    def _begins(self, slab: Slab) -> np.ndarray:
        """int64 `[classes]`: where the entries of a slab begin among those of all."""
        begins: np.ndarray = self.arrangement.begins + slab.arrangement.before[0]
        return begins


@dataclass(frozen=True)
class Coded:
    """codes: increased by FARTHEST, in the order of the arrangement. counts: int64
    `[classes, CODES]`."""

    codes: StoredCodes
    counts: np.ndarray
    step: float
    rounding: Rounding

    @cached_property
    def within(self) -> slice:
        """From the first code that occurs to the last: other counts, most of all, are not read."""
        return self.codes.within()

    @cached_property
    def counts_within(self) -> np.ndarray:
        """int64 `[classes, codes]`, of the codes `within`."""
        return np.ascontiguousarray(self.counts[:, self.within])

    @cached_property
    def total(self) -> np.ndarray:
        """Of all classes, int64 `[CODES]`."""
        total = np.zeros(self.counts.shape[1], dtype=np.int64)
        total[self.within] = self.counts_within.sum(0)
        return total

    @cached_property
    def occurring(self) -> np.ndarray:
        """The codes that occur, int64, ascending."""
        return np.flatnonzero(self.total)

    @property
    def far_share(self) -> float:
        """Of entries whose code stands for several multiples."""
        near = self.total[FARTHEST - EXACT_CODES : FARTHEST + EXACT_CODES + 1].sum()
        total = self.total.sum()
        return 1 - float(near / total) if total else 0.0

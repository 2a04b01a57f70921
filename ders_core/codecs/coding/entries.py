"""The entries of a matrix whose levels were decoded: each times the step of its row and column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.gains import Gains
from ders_core.codecs.coding.sections import Popped, Room
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.coding.stream import damaged
from ders_core.codecs.synthesis import combine
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import pieces
from ders_core.compute.sums import SUMMED_FIRST
from ders_core.later import np, torch

PIECE = 1 << 18
"""Values at a time, about, that are still in cache when they are looked at."""


@dataclass(frozen=True)
class CodedEntries:
    """gains: of rows and columns, beside their steps; None: all 1. sections: of each class, the
    levels that its entries have; of no class, where there are no entries. levels: float32. common:
    the number of the level that entries have that a section leaves out. room: in which the sections
    are."""

    arrangement: Arrangement
    steps: Steps | None
    gains: Gains | None
    levels: np.ndarray
    common: int
    sections: Sequence[Popped]
    room: Room

    @classmethod
    def of(
        cls,
        arrangement: Arrangement,
        steps: Steps | None,
        gains: Gains | None,
        levels: np.ndarray,
        common: int,
        sections: Sequence[Popped],
        room: Room,
    ) -> CodedEntries:
        """Raises CodecError if an entry may be no number."""
        entries = cls(arrangement, steps, gains, levels, common, sections, room)
        if entries.has_factors and levels.size and sections:
            farthest = np.float32(np.abs(levels).max())
            with np.errstate(over="ignore"):
                for vector in entries.factors:
                    farthest = farthest * np.abs(vector).max()
            if not np.isfinite(farthest) and not bool(torch.isfinite(entries.matrix()).all()):
                raise damaged()
        return entries

    def matrix(self, rows: slice = slice(None)) -> torch.Tensor:
        """All of them, or some rows, step 1: float32 `[rows, in]` on the CPU."""
        out, width = self.arrangement.shape
        first, last, _ = rows.indices(out)
        if not self.sections:
            return torch.zeros(last - first, width)
        if not kernels.takes():
            return self._plainly()[rows]
        from ders_core.compute.kernels import arranged

        delta = fresh((last - first, width), torch.float32)
        arranged.expand(self._as_loops_take_it(first), delta.numpy())
        return delta

    def numbers(self) -> torch.Tensor:
        """Which level each entry has: int32 `[out, in]` on the CPU."""
        counted = np.arange(len(self.levels), dtype=np.float32)
        return replace(self, levels=counted, steps=None, gains=None).matrix().to(torch.int32)

    @property
    def has_factors(self) -> bool:
        return self.steps is not None or self.gains is not None

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """What levels are multiplied by: of rows `[out]` and of columns `[in]`, float32."""
        out, width = self.arrangement.shape
        rows, columns = np.ones(out, np.float32), np.ones(width, np.float32)
        if self.steps is not None:
            rows, columns = self.steps.factors
        if self.gains is not None:
            rows, columns = rows * self.gains.rows, columns * self.gains.columns
        return rows, columns

    def onto(
        self,
        base: torch.Tensor,
        rows: slice = slice(None),
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """base + the entries, or some rows of both, step 1: `[rows, in]` in the base's dtype, on
        the CPU. weight: memory for it; `room_in` may have put the symbols there, which are gone
        then."""
        first, last, _ = rows.indices(self.arrangement.shape[0])
        below = base[first:last]
        if not (self.sections and kernels.takes_stored(base)):
            return combine(below, self.matrix(rows))
        if not self._is_sparse and base.dtype not in (torch.bfloat16, torch.float32):
            return combine(below, self.matrix(rows))
        from ders_core.compute.kernels import arranged

        weight = fresh(below.shape, base.dtype) if weight is None else weight
        coded, bits = self._as_loops_take_it(first), (kernels.bits(below), kernels.bits(weight))
        if self._is_sparse:
            arranged.add_others(coded, kernels.kind_of(base.dtype), *bits)
        elif base.dtype == torch.float32:
            arranged.expand_onto_float32(coded, below.numpy(), weight.numpy())
        else:
            arranged.expand_onto_bfloat16(coded, *bits)
        return weight

    def in_pieces_onto(self, base: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same in pieces as of `Codec.unpack_in_pieces`: a few rows at a time."""
        out, width = self.arrangement.shape
        multiple = SUMMED_FIRST // math.gcd(SUMMED_FIRST, max(width, 1))
        step = max(PIECE // max(width * multiple, 1), 1) * multiple
        for rows in list(pieces(out, step)) or [slice(0, 0)]:
            yield self.onto(base, rows).view(-1)

    @property
    def _is_sparse(self) -> bool:
        """Whether no class has a symbol for each entry, and those left out are 0 (and not −0)."""
        common = self.levels[self.common]
        return not (self.room.symbols.size or common or np.signbit(common))

    def _plainly(self) -> torch.Tensor:
        """The same as a loop does."""
        values = np.empty(int(self.arrangement.sizes.sum()), dtype=np.float32)
        begins = self.arrangement.begins
        for section, begin, size in zip(self.sections, begins, self.arrangement.sizes, strict=True):
            filled = values[begin : begin + size]
            if section.places is None:
                np.take(self.levels, section.symbols, out=filled)
            else:
                filled[:] = self.levels[self.common]
                filled[section.places] = self.levels[section.symbols]
        matrix = torch.from_numpy(self.arrangement.scattered(values))
        if not self.has_factors:
            return matrix
        rows, columns = (torch.from_numpy(each) for each in self.factors)
        return matrix.mul_(rows.unsqueeze(1)).mul_(columns)

    def _as_loops_take_it(self, first: int = 0) -> tuple[Any, ...]:
        """See `compute.kernels.arranged.expand_row`; from the row `first` on."""
        passed = self.arrangement.before[first] - self.arrangement.before[0]
        row_steps, column_steps = self.factors
        dense, at = [], []
        dense_begin = others_begin = 0
        for section, count in zip(self.sections, passed.tolist(), strict=True):
            dense.append(section.places is None)
            if section.places is None:
                at.append(dense_begin + count)
                dense_begin += len(section.symbols)
            else:
                at.append(others_begin + _before(section.places, count))
                others_begin += len(section.places) + 1
        return (
            self.arrangement.order,
            self.arrangement.edges,
            self.arrangement.kinds[first:],
            row_steps[first:],
            column_steps[self.arrangement.order],
            self.levels,
            self.levels[self.common],
            np.array(dense),
            np.array(at),
            passed,
            self.room.symbols,
            self.room.places,
            self.room.others,
        )


def _before(places: np.ndarray, count: int) -> int:
    """How many places are among the first `count` entries. Of another dtype all would be copied."""
    return int(np.searchsorted(places, places.dtype.type(count)))

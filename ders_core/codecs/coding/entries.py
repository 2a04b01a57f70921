"""The entries of a matrix whose levels were decoded: each times the step of its row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.gains import Gains
from ders_core.codecs.coding.sections import Popped
from ders_core.codecs.coding.steps import Steps
from ders_core.codecs.coding.stream import damaged
from ders_core.codecs.synthesis import combine
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.later import np, torch


@dataclass(frozen=True)
class CodedEntries:
    """gains: of rows and columns, beside their steps; None: all 1. sections: of each class, the
    levels that its entries have; of no class, where there are no entries. levels: float32. common:
    the number of the level that entries have that a section leaves out. symbols: uint16, of all
    sections that have one for each entry, side by side."""

    arrangement: Arrangement
    steps: Steps | None
    gains: Gains | None
    levels: np.ndarray
    common: int
    sections: Sequence[Popped]
    symbols: np.ndarray

    @classmethod
    def of(
        cls,
        arrangement: Arrangement,
        steps: Steps | None,
        gains: Gains | None,
        levels: np.ndarray,
        common: int,
        sections: Sequence[Popped],
        symbols: np.ndarray,
    ) -> CodedEntries:
        """Raises CodecError if an entry may be no number."""
        entries = cls(arrangement, steps, gains, levels, common, sections, symbols)
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

    def onto(self, base: torch.Tensor) -> torch.Tensor:
        """base + the entries, `[out, in]` in the base's dtype, on the CPU. It may take the memory
        of the symbols: use the entries no more."""
        if not (self.sections and kernels.takes_stored(base)):
            return combine(base, self.matrix())
        if self._is_sparse:
            return self._sparsely_onto(base)
        if base.dtype not in (torch.bfloat16, torch.float32):
            return combine(base, self.matrix())
        from ders_core.compute.kernels import arranged

        coded = self._as_loops_take_it()
        if base.dtype == torch.float32:
            weight = fresh(base.shape, base.dtype)
            arranged.expand_onto_float32(coded, base.numpy(), weight.numpy())
        else:
            weight = self._memory_for(base)
            bits = (tensor.view(torch.uint16).numpy() for tensor in (base, weight))
            arranged.expand_onto_bfloat16(coded, *bits)
        return weight

    def _memory_for(self, base: torch.Tensor) -> torch.Tensor:
        """For a weight in bfloat16: that of the symbols where each lies in its entry's place, so
        that a row is read before it is overwritten."""
        if self.steps is None and self.symbols.size == base.numel():
            return torch.from_numpy(self.symbols).view(base.dtype).view(base.shape)
        return fresh(base.shape, base.dtype)

    @property
    def _is_sparse(self) -> bool:
        """Whether no class has a symbol for each entry, and those left out are 0 (and not −0)."""
        common = self.levels[self.common]
        return not (self.symbols.size or common or np.signbit(common))

    def _sparsely_onto(self, base: torch.Tensor) -> torch.Tensor:
        from ders_core.compute.kernels import arranged

        weight = fresh(base.shape, base.dtype)
        bits = kernels.bits(base), kernels.bits(weight)
        arranged.add_others(self._as_loops_take_it(), kernels.kind_of(base.dtype), *bits)
        return weight

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
        dense, dense_sizes, run_sizes = [], [], []
        others = [np.zeros(1, np.uint16)]
        end = np.array([np.iinfo(np.int64).max])
        places = [end]
        before = []  # of what each section has
        for section, count in zip(self.sections, passed.tolist(), strict=True):
            dense.append(section.places is None)
            before.append(
                count if section.places is None else int(np.searchsorted(section.places, count))
            )
            dense_sizes.append(len(section.symbols) if section.places is None else 0)
            run_sizes.append(0 if section.places is None else len(section.places) + 1)
            if section.places is not None:
                places += [section.places, end]
                others += [section.symbols, np.zeros(1, np.uint16)]
        at = np.where(dense, _begins(dense_sizes), 1 + _begins(run_sizes)) + np.array(before)
        return (
            self.arrangement.order,
            self.arrangement.edges,
            self.arrangement.kinds[first:],
            row_steps[first:],
            column_steps[self.arrangement.order],
            self.levels,
            self.levels[self.common],
            np.array(dense),
            at,
            passed,
            self.symbols,
            np.concatenate(places),
            np.concatenate(others),
        )


def _begins(sizes: Sequence[int]) -> np.ndarray:
    begins: np.ndarray = np.cumsum(sizes) - sizes
    return begins

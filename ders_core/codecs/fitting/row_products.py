"""Products and sums with entries that are held row by row, on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ders_core.codecs.coding.packing import BYTE
from ders_core.codecs.routed import product_of
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.later import np, torch

MOST_PAIRS = 16
"""Of one expert: of more, torch's products with decoded deltas are quicker."""

WORTH = 8
"""Values of a whole matrix that take as long to multiply as one entry."""

_Arrays = tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any, Any]


@dataclass(frozen=True)
class RowEntries:
    """A matrix. parts: as `codecs.held_entries` names them; numbers of levels may come without
    scales, and these without owners. low: bits of a column that are kept. value_bits: of a number
    of a level. steps: what all entries of a row are multiplied by, and of a column, float32 `[out]`
    and `[in]`."""

    parts: Mapping[str, torch.Tensor]
    low: int
    gain: float
    value_bits: int = BYTE
    steps: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def rows(self) -> int:
        return self.parts["starts"].numel() - 1

    @cached_property
    def _count(self) -> int:
        """Of entries."""
        return int(self.parts["starts"][-1])

    @cached_property
    def _arrays(self) -> _Arrays:
        """What loops want of it, up to the steps of rows."""
        from ders_core.compute.kernels.row_entries import CODES

        starts, marks, columns = (
            self.parts[name].numpy() for name in ("starts", "marks", "columns")
        )
        places = (starts, marks.view(np.uint64), columns)
        values, none = self.parts["values"], np.empty(0, np.float32)
        levels, scales = (
            self.parts[name].numpy() if name in self.parts else none
            for name in ("levels", "scales")
        )
        if "levels" in self.parts:
            stored, kind = values.numpy(), CODES
        else:
            stored, kind = kernels.bits(values), kernels.kind_of(values.dtype)
        owners, firsts = (
            self.parts[name].numpy() if name in self.parts else np.empty(0, kind_of_numbers)
            for name, kind_of_numbers in (("owners", np.uint8), ("firsts", np.int32))
        )
        row_steps = none if self.steps is None else self.steps[0].numpy()
        coded = (stored, kind, self.value_bits, levels, scales, owners, firsts)
        return (*places, self.low, *coded, np.float32(self.gain), row_steps)

    def multiply(
        self, x: np.ndarray, y: np.ndarray, column: int, inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        """y[output, column:column + out] += Δ̂ x[input], of float32."""
        from ders_core.compute.kernels import row_entries

        if self.steps is not None:
            x, inputs = x[inputs] * self.steps[1].numpy(), np.arange(len(inputs))
        arrays = (*self._arrays, x, inputs, y, column, outputs)

        def work(first: int, last: int) -> None:
            row_entries.multiply(*arrays, first, last)

        by_row_pieces(work, self.rows, WORTH * self._count * len(inputs))

    def onto(self, base: torch.Tensor) -> torch.Tensor:
        """base + Δ̂, in the base's dtype, one of those that loops know."""
        weight = fresh(base.shape, base.dtype)
        self.add_onto(base, weight)
        return weight

    def add_onto(self, base: torch.Tensor | None, weight: torch.Tensor) -> None:
        """weight: gets base + Δ̂, of the base's dtype, added in float32; without a base, in its own.
        Both `[out, in]`."""
        from ders_core.compute.kernels import row_entries

        bits = kernels.bits(weight)
        below = bits[:0] if base is None else kernels.bits(base)
        column_steps = np.empty(0, np.float32) if self.steps is None else self.steps[1].numpy()
        arrays = (*self._arrays, column_steps, below, kernels.kind_of(weight.dtype), bits)

        def work(first: int, last: int) -> None:
            row_entries.add_onto(*arrays, first, last)

        by_row_pieces(work, self.rows, weight.numel())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Δ̂ᵀ `[n, out]` in x's dtype."""
        return product_of(x, self.rows, lambda x, y, rows: self.multiply(x, y, 0, rows, rows))

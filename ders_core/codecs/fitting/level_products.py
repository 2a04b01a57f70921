"""Matrices whose entries have a few levels, times the steps of their row and column: how they are
held in memory, multiplied, and added to a base.

Steps of columns are multiplied with inputs, and steps of rows with what comes out, so that a
product meets each entry's level alone. A weight has (level · row's step) · column's step, in this
order, as `codecs.coding.entries` has it: bit by bit the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.packing import BYTE, packed_bytes
from ders_core.codecs.coding.row_places import read_places
from ders_core.codecs.coding.small_codes import unpack_small
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.code_products import WORTH
from ders_core.codecs.fitting.codes import Lines, decoded
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.plane_products import FEW_PLANES, RoutedPlanes
from ders_core.codecs.fitting.row_products import RowEntries
from ders_core.codecs.routed import Routes, product_of
from ders_core.codecs.synthesis import combine
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.later import np, torch

MOST_PAIRS = 16
"""Of one expert: of more, torch's products with a decoded matrix are quicker."""

MOST_UNEVEN = 1e-6
"""Of levels that count as evenly spaced, as a share of the largest."""


@dataclass(frozen=True)
class LevelMatrix(ABC):
    """steps: of rows float32 `[out]`, and of columns `[in]`; None for 1."""

    shape: tuple[int, int]
    steps: tuple[torch.Tensor, torch.Tensor] | None

    @abstractmethod
    def decode(self) -> torch.Tensor:
        """float32 `[out, in]`."""

    def onto(self, base: torch.Tensor) -> torch.Tensor:
        """base + the matrix, added in float32, in the base's dtype."""
        return combine(base, self.decode())

    @property
    @abstractmethod
    def takes_loops(self) -> bool:
        """Whether `multiply` can work on it."""

    @abstractmethod
    def multiply(
        self, x: np.ndarray, y: np.ndarray, column: int, inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        """y[output, column:column + out] += Δ̂ x[input], of float32."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Δ̂ᵀ `[n, out]` in x's dtype."""
        out = self.shape[0]
        return product_of(x, out, lambda x, y, rows: self.multiply(x, y, 0, rows, rows))


@dataclass(frozen=True)
class SparseLevels(LevelMatrix):
    """Most entries have the level `common`, float32 `[1]`. places: as of `stored_places`, of the
    `count` others. low: bits of a column that are kept. values: their levels' numbers of `bits`
    bits. levels: float32 `[2^bits]`."""

    places: Mapping[str, torch.Tensor]
    low: int
    count: int
    values: torch.Tensor
    bits: int
    levels: torch.Tensor
    common: torch.Tensor

    @cached_property
    def _is_zero(self) -> bool:
        """Whether the common level is 0, and not −0."""
        return not (float(self.common) or bool(self.common.signbit()))

    def decode(self) -> torch.Tensor:
        if self.takes_loops and self._is_zero:
            delta = fresh(self.shape, torch.float32)
            self._entries.add_onto(None, delta)
            return delta
        delta = self.common.expand(self.shape)
        found = self.levels[unpack_small(self.values, self.bits, self.count).int()]
        places = read_places(self.places, self.shape, self.count)
        if self.steps is None:
            delta = delta.contiguous()
        else:
            rows, columns = self.steps
            delta = (delta * rows.unsqueeze(1)).mul_(columns)
            width = self.shape[1]
            found = (found * rows[places // width]).mul_(columns[places % width])
        delta.view(-1)[places] = found
        return delta

    def onto(self, base: torch.Tensor) -> torch.Tensor:
        if not (self.takes_loops and self._is_zero and kernels.takes_stored(base)):
            return super().onto(base)
        return self._entries.onto(base)

    @property
    def takes_loops(self) -> bool:
        return kernels.takes(self.values)

    @cached_property
    def _entries(self) -> RowEntries:
        return self._with(self.levels)

    @cached_property
    def _others(self) -> RowEntries:
        """What is left of entries where all are less by the common level."""
        return self._entries if self._is_zero else self._with(self.levels - self.common)

    def _with(self, levels: torch.Tensor) -> RowEntries:
        parts = {**self.places, "values": self.values, "levels": levels}
        return RowEntries(parts, self.low, 1.0, self.bits, self.steps)

    def multiply(
        self, x: np.ndarray, y: np.ndarray, column: int, inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        self._others.multiply(x, y, column, inputs, outputs)
        if self._is_zero:
            return
        taken, out = x[inputs], self.shape[0]
        rows = np.ones(out, np.float32)
        if self.steps is not None:
            rows, taken = self.steps[0].numpy(), taken * self.steps[1].numpy()
        sums = self.common.numpy() * taken.sum(1, keepdims=True) * rows
        np.add.at(y[:, column : column + out], outputs, sums)


@dataclass(frozen=True)
class DenseLevels(LevelMatrix):
    """codes: numbers of levels of `bits` bits, in planes, as `pack` makes of `[out, in]`. levels:
    float32 `[2^bits]`. count: of the levels that there are, in ascending order; the rest is
    unused."""

    codes: torch.Tensor
    bits: int
    levels: torch.Tensor
    count: int

    def decode(self) -> torch.Tensor:
        delta = self._decoded(None)
        return delta if self.steps is None else delta.mul_(self.steps[1])

    def onto(self, base: torch.Tensor) -> torch.Tensor:
        """In one pass over memory, where columns have no steps."""
        return self._decoded(base) if self.steps is None else super().onto(base)

    def _decoded(self, base: torch.Tensor | None) -> torch.Tensor:
        """Without the steps of columns, as of `decoded`."""
        lines = Lines(self._all_steps[0].unsqueeze(1), None)
        levels = Levels(self.levels, uniform=False)
        return decoded(self.codes, self.bits, lines, levels, self._blocks, base)

    @property
    def takes_loops(self) -> bool:
        return kernels.takes(self.codes)

    @property
    def _blocks(self) -> Blocks:
        """A row is one."""
        return Blocks.of(self.shape[1], 0)

    @cached_property
    def _all_steps(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.steps is not None:
            return self.steps
        rows, columns = (torch.ones(size, device=self.codes.device) for size in self.shape)
        return rows, columns

    @cached_property
    def _planes(self) -> RoutedPlanes | None:
        """None where levels are not evenly spaced, or the shape does not fill what loops take."""
        levels = self.levels[: self.count].double()
        step = float(levels[-1] - levels[0]) / max(self.count - 1, 1)
        even = levels[0] + step * torch.arange(self.count, dtype=torch.float64)
        if step <= 0 or float((levels - even).abs().max()) > MOST_UNEVEN * levels.abs().max():
            return None
        lines = Lines((self._all_steps[0] * step).view(1, -1, 1), None)
        zero, places = int(levels.abs().argmin()), torch.arange(self.count)
        apart = places - zero if levels[zero] == 0 else levels / step
        codes, table = self.codes.unsqueeze(0), Levels(apart.float(), uniform=True)
        return RoutedPlanes.of(codes, self.bits, lines, table, self._blocks, self.shape)

    def multiply(
        self, x: np.ndarray, y: np.ndarray, column: int, inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        x, inputs = x[inputs], np.arange(len(inputs))
        if self.steps is not None:
            x *= self.steps[1].numpy()
        if self.bits * len(inputs) <= FEW_PLANES and self._planes is not None:
            self._planes.add(x, y, column, Routes(inputs, np.zeros_like(inputs), outputs))
            return
        from ders_core.compute.kernels import code_products

        out, width = self.shape
        rows = self._all_steps[0].numpy().reshape(-1, 1)
        codes = self.codes.numpy(), self.bits, packed_bytes(out * width, 1), width
        levels = rows, rows[:0], self.levels.numpy(), False
        arrays = *codes, *levels, x, inputs, y, column, outputs

        def work(first: int, last: int) -> None:
            code_products.multiply(*arrays, first, last)

        by_row_pieces(work, out, out * width * (WORTH + len(inputs)), multiple=BYTE)

"""Steps of one factor a row and one a column, and the classes of entries whose steps are alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.later import np, torch

PER_OCTAVE = 4
"""Values of a factor to a doubling: finer ones would cost more bytes than they save."""

ROOTS = [2.0 ** (part / PER_OCTAVE) for part in range(PER_OCTAVE)]

SMALLEST, LARGEST = -200, 200
"""Exponents of a factor: from 2⁻⁵⁰ to 2⁵⁰."""

MOST_CLASSES = 16
OUTSIDE = 0.01
"""Share of entries at either end of the steps that join the next class."""

Counted = tuple[int, "np.ndarray"]
"""The lowest exponent, and how often each from there on occurs."""


@dataclass(frozen=True)
class Steps:
    """The step of entry (i, j) is 2^((rows_i + columns_j) / PER_OCTAVE) times one of the matrix.

    rows: int64 `[out]`. columns: int64 `[in]`. Both from SMALLEST to LARGEST.
    """

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def even(cls, shape: tuple[int, int]) -> Steps:
        out, width = shape
        return cls(np.zeros(out, dtype=np.int64), np.zeros(width, dtype=np.int64))

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of rows `[out]` and columns `[in]`, float32; not to be changed."""
        return powers(self.rows), powers(self.columns)

    def inverse(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What entries are multiplied by to be in units of their steps: of rows `[out]` and of
        columns `[in]`, float32."""
        return torch.from_numpy(powers(-self.rows)), torch.from_numpy(powers(-self.columns))

    def divided(self, delta: torch.Tensor) -> torch.Tensor:
        """Δ in units of its steps, `[out, in]` float32."""
        rows, columns = self.inverse()
        return (delta * rows.unsqueeze(1)).mul_(columns)

    def multiply_(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of `divided`, in place."""
        rows, columns = (torch.from_numpy(each) for each in self.factors)
        return values.mul_(rows.unsqueeze(1)).mul_(columns)

    def classes(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Entries whose steps are alike to an octave (to more, where there are many octaves) have
        statistics of their own: the classes int64, from 0 up with the step, of entries in these
        rows and columns, int64 of shapes that go together."""
        low, high = self._range
        sums: np.ndarray = self.rows[rows] + self.columns[columns] - low
        np.clip(sums, 0, high - low, out=sums)
        sums //= self._span
        return sums

    @cached_property
    def class_count(self) -> int:
        """One more than the class of the largest steps."""
        if not (self.rows.size and self.columns.size):
            return 1
        low, high = self._range
        largest = int(self.rows.max() + self.columns.max())
        return int(min(max(largest - low, 0), high - low)) // self._span + 1

    @property
    def class_begins(self) -> np.ndarray:
        """int64 `[classes]`: the least sum of a row's and a column's exponent in each class;
        smaller sums are in class 0 too."""
        return self._range[0] + self._span * np.arange(self.class_count)

    @cached_property
    def counted(self) -> tuple[Counted, Counted]:
        """Of the rows and of the columns."""
        return _counted(self.rows), _counted(self.columns)

    @cached_property
    def _range(self) -> tuple[int, int]:
        """Exponents of steps that all but OUTSIDE of the entries reach, and that all but as many do
        not exceed."""
        if not (self.rows.size and self.columns.size):
            return 0, 0
        (first_row, of_rows), (first_column, of_columns) = self.counted
        first = first_row + first_column
        below = np.cumsum(np.convolve(of_rows, of_columns))
        low = int(np.searchsorted(below, OUTSIDE * below[-1], side="right"))
        high = int(np.searchsorted(below, (1 - OUTSIDE) * below[-1]))
        return first + low, first + max(low, high)

    @property
    def _span(self) -> int:
        """Exponents in a class."""
        low, high = self._range
        return PER_OCTAVE * -(-(high - low + 1) // (PER_OCTAVE * MOST_CLASSES))


def _counted(exponents: np.ndarray) -> Counted:
    lowest = int(exponents.min()) if exponents.size else 0
    return lowest, np.bincount(exponents - lowest)


def powers(exponents: np.ndarray) -> np.ndarray:
    """2^(exponents / PER_OCTAVE) float32, the same on every machine."""
    whole = exponents // PER_OCTAVE
    roots = np.array(ROOTS, dtype=np.float32)[exponents - whole * PER_OCTAVE]
    scaled: np.ndarray = np.ldexp(roots, whole.astype(np.int32))
    return scaled

"""The order in which the entries of a matrix are coded: class after class.

Columns are sorted by their exponents (those of equal ones stay in order), so that in each row the
entries of a class of `Steps` lie side by side. The entries of a class are those of its rows, one
after another, each in that order of columns.
"""

from __future__ import annotations

from functools import cached_property

from ders_core.codecs.coding.steps import Steps
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np, torch


class Arrangement:
    """steps: None where all are alike: one class, row by row."""

    def __init__(self, shape: tuple[int, int], steps: Steps | None) -> None:
        self.shape, self._steps = shape, steps
        self.class_count = 1 if steps is None else steps.class_count

    @cached_property
    def order(self) -> np.ndarray:
        """uint32 `[in]`: the columns, sorted."""
        if self._steps is None:
            return np.arange(self.shape[1], dtype=np.uint32)
        return np.argsort(self._steps.columns.numpy(), kind="stable").astype(np.uint32)

    @cached_property
    def kinds(self) -> np.ndarray:
        """int64 `[out]`: which row of `edges` each row has."""
        if self._steps is None or not self.shape[0]:
            return np.zeros(self.shape[0], dtype=np.int64)
        rows = self._steps.rows.numpy()
        kinds: np.ndarray = rows - rows.min()
        return kinds

    @cached_property
    def edges(self) -> np.ndarray:
        """int64 `[kinds, classes + 1]`: where each class begins among the sorted columns."""
        if self._steps is None or not self.shape[0]:
            return np.array([[0, *[self.shape[1]] * self.class_count]])
        rows, columns = self._steps.rows.numpy(), self._steps.columns.numpy()[self.order]
        kinds = np.arange(rows.min(), rows.max() + 1)
        begins = self._steps.class_begins[1:]  # of sums of exponents
        inner = np.searchsorted(columns, begins - kinds[:, None])
        return np.pad(inner, ((0, 0), (1, 1)), constant_values=(0, self.shape[1]))

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 `[classes]`: how many entries each has."""
        often = np.bincount(self.kinds, minlength=len(self.edges))
        sizes: np.ndarray = often @ np.diff(self.edges, axis=1)
        return sizes

    @property
    def begins(self) -> np.ndarray:
        """int64 `[classes]`: how many entries come before those of each class."""
        begins: np.ndarray = np.cumsum(self.sizes) - self.sizes
        return begins

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 `[out · in]`: which entries of the matrix they are, in their order."""
        places = np.arange(self.shape[0] * self.shape[1])
        if self._steps is None:
            return places
        order = places.reshape(self.shape)[:, self.order].reshape(-1)
        classes = self._steps.classes.numpy()[order]
        return order[np.argsort(classes, kind="stable")]

    def symbols(self, codes: torch.Tensor, numbers: np.ndarray) -> list[np.ndarray]:
        """What each class's entries have: uint16 `[entries]` each.

        codes: int32 `[out · in]`. numbers: uint16, what each code stands for.
        """
        symbols = fresh_array(codes.numel(), np.uint16)
        if kernels.takes(codes):
            from ders_core.compute.kernels import arranged

            places = self.order, self.edges, self.kinds, self.begins
            arranged.arrange(codes.numpy().reshape(self.shape), numbers, *places, symbols)
        else:
            np.take(numbers, codes.numpy()[self._places], out=symbols)
        return np.split(symbols, self.begins[1:])

    def scattered(self, values: np.ndarray) -> np.ndarray:
        """The inverse in numpy: `[out, in]` of what the entries have in their order."""
        matrix = np.empty(len(values), dtype=values.dtype)
        matrix[self._places] = values
        return matrix.reshape(self.shape)

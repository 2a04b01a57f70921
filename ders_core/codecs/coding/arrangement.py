"""The order in which the entries of a matrix are coded: class after class.

Columns are sorted by their exponents (those of equal ones stay in order), so that in each row the
entries of a class of `Steps` lie side by side. The entries of a class are those of its rows, one
after another, each in that order of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.steps import Steps
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh_array
from ders_core.later import np


@dataclass(frozen=True)
class Arrangement:
    """Of some rows of a matrix.

    order: uint32 `[in]`, the columns, sorted. edges: int64 `[kinds, classes + 1]`, where each class
    begins among them. kinds: int64 `[out]`, which row of edges each row has. before: int64
    `[out + 1, classes]`, how many entries of each class are in the rows of the matrix before each
    row, and up to the end of the last. first_row: how many rows of the matrix come before these.
    """

    order: np.ndarray
    edges: np.ndarray
    kinds: np.ndarray
    before: np.ndarray
    first_row: int = 0

    @classmethod
    def of(cls, shape: tuple[int, int], steps: Steps | None) -> Arrangement:
        """Of a matrix `[out, in]`. steps: None where all are alike: one class, row by row."""
        out, width = shape
        order, kinds = np.arange(width, dtype=np.uint32), np.zeros(out, dtype=np.int64)
        edges = np.array([[0, *[width] * (1 if steps is None else steps.class_count)]])
        if steps is not None and out:
            order = np.argsort(steps.columns, kind="stable").astype(np.uint32)
            rows, columns = steps.rows, steps.columns[order]
            kinds = rows - rows.min()
            begins = steps.class_begins[1:]  # of sums of exponents
            each_kind = np.arange(rows.min(), rows.max() + 1)
            inner = np.searchsorted(columns, begins - each_kind[:, None])
            edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=(0, width))
        widths = np.diff(edges)[kinds]
        before = np.zeros((out + 1, widths.shape[1]), dtype=np.int64)
        np.cumsum(widths, axis=0, out=before[1:])
        return cls(order, edges, kinds, before)

    def of_rows(self, rows: slice) -> Arrangement:
        """Of some of these rows alone."""
        before = self.before[rows.start : rows.stop + 1]
        first_row = self.first_row + rows.start
        return Arrangement(self.order, self.edges, self.kinds[rows], before, first_row)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.kinds), len(self.order)

    @property
    def class_count(self) -> int:
        return int(self.edges.shape[1]) - 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 `[classes]`: how many entries each has."""
        sizes: np.ndarray = self.before[-1] - self.before[0]
        return sizes

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 `[classes]`: how many entries come up to the end of each class."""
        return np.cumsum(self.sizes)

    @cached_property
    def begins(self) -> np.ndarray:
        """int64 `[classes]`: how many entries come before those of each class."""
        begins: np.ndarray = self.ends - self.sizes
        return begins

    @property
    def classes(self) -> list[slice]:
        """Where the entries of each class are in their order."""
        return [slice(*pair) for pair in zip(self.begins.tolist(), self.ends.tolist(), strict=True)]

    def arranged(self, matrix: np.ndarray) -> np.ndarray:
        """The entries of a matrix `[out, in]`, `[out · in]` in their order."""
        values = fresh_array(matrix.size, matrix.dtype.type)
        if kernels.takes():
            from ders_core.compute.kernels import arranged

            arranged.arrange(matrix, self.order, self.edges, self.kinds, self.begins, values)
            return values
        return np.take(matrix.reshape(-1), self._places, out=values)

    def scattered(self, values: np.ndarray) -> np.ndarray:
        """The inverse."""
        matrix = fresh_array(values.size, values.dtype.type).reshape(self.shape)
        if kernels.takes():
            from ders_core.compute.kernels import arranged

            arranged.scatter(values, self.order, self.edges, self.kinds, self.begins, matrix)
        else:
            matrix.reshape(-1)[self._places] = values
        return matrix

    @property
    def _places(self) -> np.ndarray:
        """int64 `[out · in]`: the flat places of all, in their order, in a matrix of these rows."""
        places = np.empty(self.shape[0] * self.shape[1], dtype=np.int64)
        for number, part in enumerate(self.classes):
            before = self.before[:, number] - self.before[0, number]
            within = np.arange(part.stop - part.start)
            rows = np.searchsorted(before, within, "right") - 1
            columns = self.edges[self.kinds[rows], number] + within - before[rows]
            places[part] = rows * len(self.order) + self.order[columns]
        return places

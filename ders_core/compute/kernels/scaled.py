"""Deltas in units of their steps, and their magnitudes counted.

rows, columns: float32 `[out]` and `[in]`, what the entries of each row are multiplied by, and then
those of each column.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.floats import bits_of, float_of, widen
from ders_core.compute.kernels.loop import loop

MAGNITUDE = np.uint32(0x7FFFFFFF)


@loop
def scale(delta: np.ndarray, rows: np.ndarray, columns: np.ndarray, scaled: np.ndarray) -> None:
    """Fill scaled, as delta: float32 `[out, in]`."""
    for row in range(delta.shape[0]):
        given, filled, factor = delta[row], scaled[row], rows[row]
        for column in range(columns.size):
            filled[column] = np.float32(given[column] * factor) * columns[column]


@loop
def scale_differences(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    rows: np.ndarray,
    columns: np.ndarray,
    scaled: np.ndarray,
) -> None:
    """The same of weights − base, bits of floats `[out, in]`, of a kind of `floats`."""
    for row in range(weights.shape[0]):
        ours, common, filled, factor = weights[row], base[row], scaled[row], rows[row]
        for column in range(columns.size):
            delta = widen(ours[column], kind) - widen(common[column], kind)
            filled[column] = np.float32(delta * factor) * columns[column]


@loop
def count_magnitudes(
    deltas: np.ndarray,
    stride: int,
    rows: np.ndarray,
    columns: np.ndarray,
    shift: int,
    order: np.ndarray,
    edges: np.ndarray,
    kinds: np.ndarray,
    counts: np.ndarray,
) -> np.float32:
    """The largest magnitude in units of steps. deltas: float32, each n-th of a matrix `[out, in]`.
    shift: how many low bits of magnitudes are left out. order, edges, kinds: as of `arranged`.
    counts: int64 `[classes, 2^(31 − shift)]`, gets how often the others occur in each class
    added."""
    places, largest, width = np.uint32(shift), np.uint32(0), columns.size
    first_cells = np.empty((edges.shape[0], width), np.uint32)  # of each column's class
    for kind in range(edges.shape[0]):
        for number in range(edges.shape[1] - 1):
            for place in range(edges[kind, number], edges[kind, number + 1]):
                first_cells[kind, order[place]] = number * counts.shape[1]
    cells, row, column = counts.reshape(-1), 0, 0
    for place in range(deltas.size):
        while column >= width:
            row, column = row + 1, column - width
        scaled = np.float32(np.float32(deltas[place] * rows[row]) * columns[column])
        bits = np.uint32(bits_of(scaled) & MAGNITUDE)
        largest = max(largest, bits)
        cells[np.uint32(first_cells[kinds[row], column] + np.uint32(bits >> places))] += 1
        column += stride
    found: np.float32 = float_of(largest)
    return found

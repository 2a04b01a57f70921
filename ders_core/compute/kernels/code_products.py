"""Products with codes whose rows are decoded a few at a time, and never all: see `codes`."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.codes import decode
from ders_core.compute.kernels.floats import FLOAT32, float_of
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.stored_products import STEP, dot

ROWS_OF_PLANES, ROWS_OF_TRITS = 8, 5
"""Rows that fill bytes, whatever their width."""


@loop
def multiply(
    packed: np.ndarray,
    bits: int,
    stride: int,
    size: int,
    scales: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    is_uniform: bool,
    x: np.ndarray,
    inputs: np.ndarray,
    y: np.ndarray,
    column: int,
    outputs: np.ndarray,
    first: int,
    last: int,
) -> None:
    """y[output, column + row] += w_row · x[input] of one matrix, of the rows from `first` to `last`
    and all pairs.

    packed to is_uniform: as of `codes.decode`, of all rows. first: of rows that fill bytes. x:
    float32 `[n, in]`. inputs, outputs: int64 `[pairs]`. y: float32, two-dimensional.
    """
    width = x.shape[1]
    many = ROWS_OF_PLANES if bits > 0 else ROWS_OF_TRITS
    rows, flat_x = np.empty((many, width), np.uint32), x.reshape(-1)
    none, flat, steps = rows[:0], rows.reshape(-1), width // STEP
    for begin in range(first, last, many):
        here = min(many, last - begin)
        some = offsets[begin : begin + here] if len(offsets) else offsets
        factors = scales[begin : begin + here]
        decode(
            packed,
            bits,
            begin,
            stride,
            size,
            factors,
            some,
            table,
            is_uniform,
            none,
            FLOAT32,
            FLOAT32,
            rows[:here],
        )
        for row in range(here):
            for pair in range(len(inputs)):
                place = inputs[pair] * width
                total = dot(flat, row * width, flat_x, place, steps)
                for rest in range(STEP * steps, width):
                    total += float_of(rows[row, rest]) * flat_x[place + rest]
                y[outputs[pair], column + begin + row] += total

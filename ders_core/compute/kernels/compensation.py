"""Columns rounded one after another, each making up for the errors of those before it, as
`codecs.fitting.gptq` has it in torch."""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.levels import nearest
from ders_core.compute.kernels.loop import loop

ROWS = 64
"""Rows at a time: so many values of each column of a block stay in the fastest cache."""


@loop
def compensate(
    rest: np.ndarray,
    begin: int,
    factor: np.ndarray,
    order: np.ndarray,
    size: int,
    scale: np.ndarray,
    offset: np.ndarray,
    table: np.ndarray,
    borders: np.ndarray,
    bins: np.ndarray,
    fine: np.float32,
    codes: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Round the columns of rest from `begin` on, as many as errors has.

    rest: float32 `[out, in]`, its columns in their order of turn. factor: float32 `[in, in]`, upper
    triangular, alike. order: int64 `[in]`, which column of the matrix each one is. size: of a
    block. scale, offset: float32 `[out, blocks]`; offset `[0, 0]` for none. table, borders, bins,
    fine: as of `levels`. codes: uint8 `[out, in]`, gets the columns in the matrix's order. errors:
    float32 `[out, n]`, get what each column leaves to those after it.
    """
    many = errors.shape[1]
    held = np.empty((many, ROWS), np.float32)
    ratios, lost = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    found = np.empty(ROWS, np.uint8)
    for top in range(0, rest.shape[0], ROWS):
        count = min(ROWS, rest.shape[0] - top)
        for number in range(many):
            for row in range(count):
                held[number, row] = rest[top + row, begin + number]
        for number in range(many):
            column, values = order[begin + number], held[number]
            block, diagonal = column // size, factor[begin + number, begin + number]
            for row in range(count):
                step = scale[top + row, block]
                shift = offset[top + row, block] if offset.size > 0 else np.float32(0)
                whole = step if step > np.float32(0) else np.float32(1)
                ratios[row] = np.float32(values[row] - shift) / whole
            nearest(ratios[:count], np.float32(1), table, borders, bins, fine, found[:count])
            for row in range(count):
                step = scale[top + row, block]
                shift = offset[top + row, block] if offset.size > 0 else np.float32(0)
                level = np.float32(np.float32(table[found[row]] * step) + shift)
                lost[row] = np.float32(values[row] - level) / diagonal
                codes[top + row, column] = found[row]
                errors[top + row, number] = lost[row]
            for later in range(number + 1, many):
                share, theirs = factor[begin + number, begin + later], held[later]
                for row in range(count):
                    theirs[row] -= np.float32(lost[row] * share)

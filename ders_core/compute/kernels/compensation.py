"""Columns rounded one after another, each making up for the errors of those before it, as
`codecs.fitting.gptq` and `codecs.fitting.compensated` have it in torch.

rest: float32 `[out, in]`, its columns in their order of turn. begin: the first that is rounded; as
many are as errors has. factor: float32 `[in, in]`, upper triangular, alike. order: int64 `[in]`,
which column of the matrix each one is. codes: `[out, in]`, gets the columns in the matrix's order.
errors: float32 `[out, n]`, get what each column leaves to those after it.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.levels import nearest
from ders_core.compute.kernels.loop import loop

ROWS = 64
"""Rows at a time: so many values of each column of a block stay in the fastest cache."""


@loop
def hold(rows: np.ndarray, begin: int, held: np.ndarray) -> None:
    """Copy the columns of some rows from `begin` on: held `[columns, rows]`."""
    for number in range(held.shape[0]):
        for row in range(rows.shape[0]):
            held[number, row] = rows[row, begin + number]


@loop
def leave(lost: np.ndarray, shares: np.ndarray, begin: int, number: int, held: np.ndarray) -> None:
    """Take from the columns behind `number` their shares of what it lost."""
    for later in range(number + 1, held.shape[0]):
        share, theirs = shares[begin + later], held[later]
        for row in range(lost.size):
            theirs[row] -= np.float32(lost[row] * share)


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
    """To the nearest levels. size: of a block. scale, offset: float32 `[out, blocks]`; offset
    `[0, 0]` for none. table, borders, bins, fine: as of `levels`. codes: uint8."""
    many = errors.shape[1]
    held = np.empty((many, ROWS), np.float32)
    ratios, lost = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    found = np.empty(ROWS, np.uint8)
    for top in range(0, rest.shape[0], ROWS):
        count = min(ROWS, rest.shape[0] - top)
        hold(rest[top : top + count], begin, held)
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
            leave(lost[:count], factor[begin + number], begin, number, held)


@loop
def compensate_multiples(
    rest: np.ndarray,
    begin: int,
    factor: np.ndarray,
    order: np.ndarray,
    step: np.float32,
    sizes: np.ndarray,
    most: int,
    per_octave: int,
    codes: np.ndarray,
    errors: np.ndarray,
) -> None:
    """To the nearest multiples of a step. sizes: float32, the multiple that each code stands for,
    0 in the middle. most: beyond so many, codes are this many to a doubling. codes: int32."""
    many, middle, limit = errors.shape[1], sizes.size // 2, np.float32(most)
    held = np.empty((many, ROWS), np.float32)
    lost, found = np.empty(ROWS, np.float32), np.empty(ROWS, np.int32)
    for top in range(0, rest.shape[0], ROWS):
        count = min(ROWS, rest.shape[0] - top)
        hold(rest[top : top + count], begin, held)
        for number in range(many):
            column, values = order[begin + number], held[number]
            diagonal, beyond = factor[begin + number, begin + number], 0
            for row in range(count):
                ratio = np.float32(values[row] / step)
                whole = np.rint(min(max(ratio, -limit), limit))
                found[row] = np.int32(whole) + middle
                lost[row] = np.float32(values[row] - np.float32(whole * step)) / diagonal
                if abs(ratio) > limit:
                    beyond += 1
            for row in range(count if beyond else 0):
                ratio = np.float32(values[row] / step)
                if abs(ratio) > limit:
                    octaves = np.log2(np.float64(abs(ratio)) / most) * per_octave
                    code = most + int(min(np.rint(octaves), np.float64(middle - most)))
                    found[row] = middle + code if ratio > 0 else middle - code
                    level = np.float32(sizes[found[row]] * step)
                    lost[row] = np.float32(values[row] - level) / diagonal
            for row in range(count):
                codes[top + row, column] = found[row]
                errors[top + row, number] = lost[row]
            leave(lost[:count], factor[begin + number], begin, number, held)

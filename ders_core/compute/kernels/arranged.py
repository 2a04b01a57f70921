"""Matrices to and from the order of `codecs.coding.arrangement`: class after class.

order: uint32 `[in]`, columns sorted. edges: int64 `[kinds, classes + 1]`, where each class begins
among them. kinds: int64 `[out]`, which row of edges each row has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ders_core.compute.kernels.entries import copy
from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop
from ders_core.compute.kernels.synthesis import add_bfloat16, add_float32

TURNS = 2
NEAR = 512
"""Codes at most so far from the middle are counted in TURNS: a processor waits for a count before
it adds to the same one again."""


@loop
def arrange(
    matrix: np.ndarray,
    order: np.ndarray,
    edges: np.ndarray,
    kinds: np.ndarray,
    begins: np.ndarray,
    values: np.ndarray,
) -> None:
    """Fill values `[out · in]` with a matrix `[out, in]`. begins: int64 `[classes]`, where each
    class begins in values."""
    at = begins.copy()
    for row in range(matrix.shape[0]):
        given, edge = matrix[row], edges[kinds[row]]
        for number in range(at.size):
            columns = order[edge[number] : edge[number + 1]]
            filled = values[at[number] : at[number] + columns.size]
            for place in range(columns.size):
                filled[place] = given[columns[place]]
            at[number] += columns.size


@loop
def arrange_and_count(
    codes: np.ndarray,
    order: np.ndarray,
    edges: np.ndarray,
    kinds: np.ndarray,
    begins: np.ndarray,
    arranged: np.ndarray,
    least: np.uint16,
    counts: np.ndarray,
) -> None:
    """As `arrange`, of codes uint16 `[out, in]`, which become less by `least`. counts: int64
    `[classes, 2k + 1]`, k ≥ NEAR, gets how often each code occurs added."""
    at, first = begins.copy(), np.uint32(counts.shape[1] // 2 - NEAR)
    near = np.zeros((at.size, TURNS, 2 * NEAR), dtype=np.uint32)
    for row in range(codes.shape[0]):
        given, edge = codes[row], edges[kinds[row]]
        for number in range(at.size):
            columns, of_class = order[edge[number] : edge[number + 1]], near[number]
            filled = arranged[at[number] : at[number] + columns.size]
            for place in range(columns.size):
                code = given[columns[place]]
                filled[place] = code - least
                shifted = np.uint32(np.uint32(code) - first)
                if shifted < np.uint32(2 * NEAR):
                    of_class[place % TURNS, shifted] += np.uint32(1)
                else:
                    counts[number, code] += 1
            at[number] += columns.size
    for number in range(at.size):
        for turn in range(TURNS):
            for place in range(2 * NEAR):
                counts[number, first + place] += near[number, turn, place]


@loop
def scatter(
    values: np.ndarray,
    order: np.ndarray,
    edges: np.ndarray,
    kinds: np.ndarray,
    begins: np.ndarray,
    matrix: np.ndarray,
) -> None:
    """The inverse."""
    at = begins.copy()
    for row in range(matrix.shape[0]):
        filled, edge = matrix[row], edges[kinds[row]]
        for number in range(at.size):
            columns = order[edge[number] : edge[number + 1]]
            given = values[at[number] : at[number] + columns.size]
            for place in range(columns.size):
                filled[columns[place]] = given[place]
            at[number] += columns.size


@loop
def expand_row(row: int, coded: tuple[Any, ...], filled: np.ndarray) -> None:
    """Fill the next row, float32 `[in]`, with levels times the steps of the row and of columns.

    coded: order, edges, kinds, and: row_steps: float32 `[out]`. column_steps: float32 `[in]`, in
    sorted order. levels: float32. dense: bool `[classes]`: a
    symbol for each entry, or the entries that do not have the level `common`. at, passed: int64
    `[classes]`, the next of symbols or others, and how many entries were before; are changed.
    symbols: numbers of levels. places: of others among the entries of their class, ascending; each
    class ends with one that is larger than all. others: numbers of their levels.
    """
    order, edges, kinds, row_steps, column_steps, levels, common = coded[:7]
    dense, at, passed, symbols, places, others = coded[7:]
    one = np.uint64(1)
    step, edge = row_steps[row], edges[kinds[row]]
    if not dense.all():
        filled[:] = common
    for number in range(dense.size):
        begin, count = edge[number], edge[number + 1] - edge[number]
        columns = order[begin : begin + count]
        steps = column_steps[begin : begin + count]
        if dense[number]:
            coded = symbols[at[number] : at[number] + count]
            for place in range(count):
                value = np.float32(np.float32(levels[coded[place]] * step) * steps[place])
                filled[columns[place]] = value
            at[number] += count
            continue
        if common != 0:
            usual = np.float32(common * step)
            for place in range(count):
                filled[columns[place]] = np.float32(usual * steps[place])
        before, following = passed[number], np.uint64(at[number])
        while places[following] < before + count:
            place = places[following] - before
            value = np.float32(np.float32(levels[others[following]] * step) * steps[place])
            filled[columns[place]] = value
            following += one
        at[number], passed[number] = np.int64(following), before + count


@loop
def expand(coded: tuple[Any, ...], delta: np.ndarray) -> None:
    """Fill delta, float32 `[out, in]`. coded: as of `expand_row`."""
    for row in range(delta.shape[0]):
        expand_row(row, coded, delta[row])


@loop
def expand_onto_bfloat16(coded: tuple[Any, ...], base: np.ndarray, weight: np.ndarray) -> None:
    """Fill weight with base + delta, both the bits of bfloat16: uint16 `[out, in]`."""
    delta = np.empty(weight.shape[1], dtype=np.float32)
    for row in range(weight.shape[0]):
        expand_row(row, coded, delta)
        add_bfloat16(base[row], delta, weight[row])


@loop
def expand_onto_float32(coded: tuple[Any, ...], base: np.ndarray, weight: np.ndarray) -> None:
    """Fill weight with base + delta, both float32 `[out, in]`."""
    delta = np.empty(weight.shape[1], dtype=np.float32)
    for row in range(weight.shape[0]):
        expand_row(row, coded, delta)
        add_float32(base[row], delta, weight[row])


@loop
def add_others(coded: tuple[Any, ...], kind: int, base: np.ndarray, weight: np.ndarray) -> None:
    """The same for bits of floats `[out, in]`, of a kind of `floats`, where no class is dense and
    the common level is 0."""
    order, edges, kinds, row_steps, column_steps, levels = coded[:6]
    at, passed, places, others = coded[8], coded[9], coded[11], coded[12]
    one = np.uint64(1)
    for row in range(weight.shape[0]):
        step, edge, below, filled = row_steps[row], edges[kinds[row]], base[row], weight[row]
        copy(below, kind, filled)
        for number in range(at.size):
            before, following = passed[number], np.uint64(at[number])
            begin = edge[number] - before
            end = edge[number + 1] - begin
            while places[following] < end:
                sorted_place = np.uint64(begin + places[following])
                column = order[sorted_place]
                value = np.float32(levels[others[following]] * step) * column_steps[sorted_place]
                total = np.float32(value + widen(below[column], kind))
                filled[column] = narrow(total, kind)
                following += one
            at[number], passed[number] = np.int64(following), end

"""Entries drawn from a seed in blocks of a matrix, as `codecs.coding.block_draws` defines them:
read and written block after block, so that each lies in the processor's cache meanwhile.

plan: int64 (values of a block, entries of the matrix, how many of them are drawn, offset). keys: of
the rounds of the first block, uint32 `[6]`. weights, base: bits of floats, of a kind of `floats`.
values: float32, in the order in which entries are drawn.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels import entries
from ders_core.compute.kernels.draws import mix32
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.positions import draw as draw_permuted

LINE = 32
"""Values in a line of the cache."""


@part_apart
def block_count(plan: np.ndarray) -> int:
    return max(int(plan[1]) // int(plan[0]), 1)


@part_apart
def first_entry(plan: np.ndarray, number: int) -> int:
    """Where a block begins; the last one reaches to the end."""
    return int(plan[1]) if number == block_count(plan) else number * int(plan[0])


@part_apart
def drawn_before(plan: np.ndarray, number: int) -> int:
    """How many entries are drawn in the blocks before."""
    return (first_entry(plan, number) * int(plan[2]) + int(plan[3])) // int(plan[1])


@part_apart
def draw_block(plan: np.ndarray, keys: np.ndarray, number: int, places: np.ndarray) -> None:
    """places: int64, get those of a block, counted from its first entry."""
    size = first_entry(plan, number + 1) - first_entry(plan, number)
    bits, own = 2, np.empty(keys.size, np.uint32)
    while (1 << bits) < size:
        bits += 1
    for turn in range(keys.size):
        own[turn] = keys[turn] ^ mix32(np.uint32(number * (turn + 1)))
    draw_permuted(places, 0, size, bits, own)


@loop
def draw(plan: np.ndarray, keys: np.ndarray, first: int, last: int, places: np.ndarray) -> None:
    """places: int64, get those of the blocks from `first` to before `last`, in the matrix."""
    before = drawn_before(plan, first)
    for number in range(first, last):
        begin = first_entry(plan, number)
        piece = places[
            drawn_before(plan, number) - before : drawn_before(plan, number + 1) - before
        ]
        draw_block(plan, keys, number, piece)
        for place in range(piece.size):
            piece[place] += begin


@loop
def gather(
    weights: np.ndarray,
    base: np.ndarray,
    kind: int,
    plan: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
) -> np.int64:
    """values: get weight − base. Returns bits of what is looked at to have it fetched, so that this
    is not left out."""
    places, seen = np.empty(2 * plan[0], np.int64), np.int64(0)
    for number in range(block_count(plan)):
        block = slice(first_entry(plan, number), first_entry(plan, number + 1))
        drawn = slice(drawn_before(plan, number), drawn_before(plan, number + 1))
        chosen = places[: drawn.stop - drawn.start]
        draw_block(plan, keys, number, chosen)
        for place in range(block.start, block.stop, LINE):  # in order, memory is fetched ahead
            seen ^= np.int64(weights[place]) ^ np.int64(base[place])
        entries.gather(weights[block], base[block], kind, chosen, values[drawn])
    return seen


@loop
def add(
    values: np.ndarray,
    base: np.ndarray,
    kind: int,
    plan: np.ndarray,
    keys: np.ndarray,
    first: int,
    last: int,
    weights: np.ndarray,
) -> None:
    """Of the blocks from `first` to before `last`, to which values and base belong. weights: get
    value + base, and where nothing is drawn base + 0, which gives zeros no sign."""
    places, begin = np.empty(2 * plan[0], np.int64), first_entry(plan, first)
    before = drawn_before(plan, first)
    for number in range(first, last):
        block = slice(first_entry(plan, number) - begin, first_entry(plan, number + 1) - begin)
        drawn = slice(drawn_before(plan, number) - before, drawn_before(plan, number + 1) - before)
        chosen = places[: drawn.stop - drawn.start]
        draw_block(plan, keys, number, chosen)
        entries.copy(base[block], kind, weights[block])
        entries.add(values[drawn], chosen, base[block], kind, weights[block])

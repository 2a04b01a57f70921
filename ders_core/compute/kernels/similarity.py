"""What `analysis.similarity` sums, in one pass over the weights of all experts.

experts: bits of floats `[K, n, width]`, of a kind of `floats`. base: `[rows, width]`, gets their
mean, as they are stored. top: the row of experts that is the first one of base.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.dots import add_exact_products, add_products
from ders_core.compute.kernels.floats import narrow, widen
from ders_core.compute.kernels.loop import loop, part_apart
from ders_core.compute.kernels.powers import LANES, SECOND, TOP, sums

PIECE, LEAST, VALUES = 512, 64, 1 << 15
"""Values of a row at a time: at most, at least, and of all experts together."""


@part_apart
def _piece(many: int) -> int:
    """How many values of each of so many experts are worked on at a time."""
    return min(PIECE, max(LEAST, VALUES // many // LANES * LANES))


@part_apart
def _centre(
    experts: np.ndarray,
    kind: int,
    row: int,
    begin: int,
    size: int,
    block: np.ndarray,
    middle: np.ndarray,
    average: np.ndarray,
    factors: tuple[np.float32, np.float32],
) -> int:
    """block: gets the values of each expert without the average, times the first factor. middle:
    float32, gets the average, as it is stored in `average` `[size]`, times the second factor.
    Returns size, filled up with zeros."""
    many = experts.shape[0]
    count = -(-size // LANES) * LANES
    for place in range(count):
        middle[place] = 0
    for expert in range(many):
        stored, values = experts[expert, row, begin : begin + size], block[expert]
        for place in range(size):
            values[place] = widen(stored[place], kind)
        for place in range(size):
            middle[place] += values[place]
    for place in range(size):
        average[place] = narrow(np.float32(middle[place] / np.float32(many)), kind)
    for place in range(size):
        middle[place] = widen(average[place], kind)
    for expert in range(many):
        values = block[expert]
        for place in range(size):
            values[place] = (values[place] - middle[place]) * factors[0]
        for place in range(size, count):
            values[place] = 0
    for place in range(size):
        middle[place] *= factors[1]
    for place in range(size, count):
        middle[place] = 0
    return count


@loop
def measure(
    experts: np.ndarray,
    kind: int,
    top: int,
    first: int,
    every: int,
    factors: tuple[np.float32, np.float32],
    base: np.ndarray,
    gram: np.ndarray,
    powers: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    sample: np.ndarray,
) -> None:
    """factors: powers of two, what deltas and the base are multiplied by before they are summed.
    All that follows is float64, but for the sample, and starts as zeros.

    gram: `[padded, padded]`, K filled up to a multiple of LEFT, gets the products of deltas; those
    of an expert with an earlier one mean nothing. powers: `[K + 1, 6]`, the sums of
    `powers` of each delta, and of the base last. rows, columns: Σ Δ². sample: float32
    `[n, K, width]`, gets the deltas of each row whose number `every` divides. first: the number of
    the first row.
    """
    many, (height, width) = experts.shape[0], base.shape
    piece = _piece(many)
    block = np.zeros((gram.shape[0], piece), np.float32)
    middle = np.zeros((1, piece), np.float32)
    squares, unused = np.zeros(piece, np.float32), np.zeros(piece, np.float32)
    found, sampled = np.zeros(TOP + 1, np.float64), 0
    for row in range(height):
        chosen = (first + row) % every == 0
        for begin in range(0, width, piece):
            size = min(piece, width - begin)
            average = base[row, begin : begin + size]
            count = _centre(
                experts, kind, top + row, begin, size, block, middle[0], average, factors
            )
            for place in range(count):
                squares[place] = 0
            for expert in range(many + 1):
                if expert < many:
                    sums(block, expert, middle[0], squares, count, found)
                    rows[row] += found[SECOND]
                else:
                    sums(middle, 0, middle[0], unused, count, found)
                for number in range(TOP):
                    powers[expert, number] += found[number]
                powers[expert, TOP] = max(powers[expert, TOP], found[TOP])
            for place in range(size):
                columns[begin + place] += np.float64(squares[place])
            add_products(block, count, gram)
            if chosen:
                for expert in range(many):
                    for place in range(size):
                        sample[sampled, expert, begin + place] = block[expert, place]
        sampled += int(chosen)


@loop
def exact_gram(
    experts: np.ndarray,
    kind: int,
    top: int,
    factors: tuple[np.float32, np.float32],
    base: np.ndarray,
    gram: np.ndarray,
) -> None:
    """The Gram matrix of `measure`, in float64."""
    many, (height, width) = experts.shape[0], base.shape
    piece = _piece(many)
    block, middle = np.zeros((gram.shape[0], piece), np.float32), np.zeros(piece, np.float32)
    for row in range(height):
        for begin in range(0, width, piece):
            size = min(piece, width - begin)
            average = base[row, begin : begin + size]
            count = _centre(experts, kind, top + row, begin, size, block, middle, average, factors)
            add_exact_products(block, count, gram)


@loop
def count_bins(values: np.ndarray, factor: np.float32, counts: np.ndarray) -> None:
    """values: float32 `[n]`. counts: int64 `[bins]` around zero, each 1/factor wide; the outermost
    get what is beyond them too."""
    half, last = np.float32(counts.size // 2), np.float32(counts.size - 1)
    for number in range(values.size):
        place = np.floor(np.float32(np.float32(values[number] * factor) + half))
        place = min(max(place, np.float32(0)), last)
        counts[int(place)] += 1

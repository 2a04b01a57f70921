"""Frequencies: how often symbols come, as shares of a power of two. Integer arithmetic alone, so
that every machine finds the same."""

from __future__ import annotations

from functools import cache

from ders_core.later import np


def frequencies_of(counts: np.ndarray, bits: int) -> np.ndarray:
    """int64 `[symbols]` that sum to 2^bits, at least 1 where a symbol occurs and 0 elsewhere.

    counts: int64 `[symbols]`, at least one and at most 2^bits of them above 0, with a sum below
    2^(63 − bits). Symbols that would get less than 1 get it; the others share what is left, and
    what rounding down leaves goes to the largest remainders, the first of equal ones.
    """
    occurring = counts > 0
    few = np.zeros(len(counts), dtype=bool)
    while True:
        slots, total = (1 << bits) - int(few.sum()), int(counts[~few].sum())
        fewer = occurring & ~few & (counts * slots < total)
        if not fewer.any():
            break
        few |= fewer
    frequencies = few.astype(np.int64)
    many = np.flatnonzero(occurring & ~few)
    scaled = counts[many] * slots
    frequencies[many] = scaled // total
    largest = np.argsort(-(scaled % total), kind="stable")
    left = slots - int(frequencies[many].sum())
    frequencies[many[largest[:left]]] += 1
    return frequencies


@cache
def _ends_of_eighths() -> np.ndarray:
    """int64: the least number with 1, 2, 3 … eighths, up to 2^16."""
    ends, number = [], 1
    for eighth in range(1, 8 * 16 + 1):
        while number**8 < 1 << eighth:
            number += 1
        ends.append(number)
    return np.array(ends)


def eighths(numbers: np.ndarray) -> np.ndarray:
    """⌊8 · log2⌋ of numbers from 1 to 2^16, exactly; 0 of 0."""
    found: np.ndarray = np.searchsorted(_ends_of_eighths(), numbers, "right")
    return found


def entropy_bytes(counts: np.ndarray) -> float:
    """Bytes that symbols of these counts take at least: n·H / 8."""
    return float(row_bytes(counts[None])[0])


def row_bytes(counts: np.ndarray) -> np.ndarray:
    """The same of each row of int64 `[rows, symbols]`: float64 `[rows]`."""
    rows, symbols = np.nonzero(counts)
    used, totals = counts[rows, symbols], counts.sum(1)
    return np.bincount(rows, used * np.log2(totals[rows] / used), len(counts)) / 8

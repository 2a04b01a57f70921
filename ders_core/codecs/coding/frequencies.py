"""Frequencies: how often symbols come, as shares of a power of two. Integer arithmetic alone, so
that every machine finds the same."""

from __future__ import annotations

import math
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


LOG_BITS, STEP_BITS, LOGGED_BITS = 24, 12, 40
"""Of logarithms: bits after the point; steps of an octave in the table, as a power of two; and bits
of the numbers that they are of."""


@cache
def log_table() -> np.ndarray:
    """int64: log2 of each step from 1 to 2, in units of 2^−LOG_BITS. None is so near to half a unit
    that a machine could round it to another integer."""
    steps = 1 << STEP_BITS
    logs = [math.log2(1 + step / steps) for step in range(steps + 1)]
    return np.array([round(log * (1 << LOG_BITS)) for log in logs], dtype=np.int64)


def logarithms(numbers: np.ndarray) -> np.ndarray:
    """log2 of int64 from 1 to 2^LOGGED_BITS, in units of 2^−LOG_BITS and to about one of them:
    between the steps of the table as on a straight line."""
    octave = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1  # exact, of integers
    places = numbers << LOGGED_BITS - octave
    fine_bits, table = LOGGED_BITS - STEP_BITS, log_table()
    step, fine = (places >> fine_bits) - (1 << STEP_BITS), places & (1 << fine_bits) - 1
    between = (table[step + 1] - table[step]) * fine >> fine_bits
    found: np.ndarray = (octave << LOG_BITS) + table[step] + between
    return found


def row_logs(counts: np.ndarray) -> np.ndarray:
    """n·H of each row of int64 `[rows, symbols]`, in units of 2^−LOG_BITS bits: int64 `[rows]`. A
    row has at most 2^33 entries."""
    rows, symbols = np.nonzero(counts)
    used, totals, found = counts[rows, symbols], counts.sum(1), np.zeros(len(counts), np.int64)
    np.add.at(found, rows, used * (logarithms(totals[rows]) - logarithms(used)))
    return found


def entropy_bytes(counts: np.ndarray) -> float:
    """Bytes that symbols of these counts take at least: n·H / 8."""
    return float(row_bytes(counts[None])[0])


def row_bytes(counts: np.ndarray) -> np.ndarray:
    """The same of each row of int64 `[rows, symbols]`: float64 `[rows]`."""
    rows, symbols = np.nonzero(counts)
    used, totals = counts[rows, symbols], counts.sum(1)
    return np.bincount(rows, used * np.log2(totals[rows] / used), len(counts)) / 8

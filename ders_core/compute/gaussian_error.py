"""Errors of scalar quantizers of a Gaussian, from the literature: ‖Δ̂ − Δ‖ / ‖Δ‖ by bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ders_core.later import np

UNIFORM = {
    1: 0.6028,
    2: 0.3447,
    3: 0.1935,
    4: 0.1074,
    5: 0.0590,
    6: 0.0322,
    7: 0.0174,
    8: 0.0094,
}
"""Of the best 2^bits uniform levels (Max 1960, table II)."""

LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
"""Squared error of the best 2^bits levels (Max 1960, table I)."""

PANTER_DITE = 2.7207
"""π√3/2: times 4^−bits, the same where bits are many (Panter and Dite 1951)."""

TERNARY = 0.4361
"""Of the best −1, 0 and 1; the squared error is 0.1902."""

ENTROPY_CODED = {
    0.0: 1.0,
    0.1: 0.9085,
    0.25: 0.7895,
    0.5: 0.6173,
    1.0: 0.3483,
    1.5: 0.1776,
    2.0: 0.0889,
    3.0: 0.02224,
}
"""Squared error of multiples of a step that are entropy-coded in each number of bits per entry,
with centroids and the best adaptive zero."""

UNBIASED = {
    0.02: 369.0,
    0.05: 127.6,
    0.1: 55.74,
    0.25: 17.54,
    0.5: 6.581,
    1.0: 1.806,
    1.5: 0.5510,
    2.0: 0.2164,
    3.0: 0.04655,
    4.0: 0.01124,
}
"""Squared error of unbiased rounding to multiples of a step, entropy-coded in each number of bits
per entry; from 4 bits on twice that of `GISH_PIERCE`."""

GISH_PIERCE = math.pi * math.e / 6
"""Times 4^−bits, the same where bits are many (Gish and Pierce 1968)."""


def of_best_levels(bits: int) -> float:
    """The least error of any 2^bits levels."""
    return math.sqrt(LLOYD_MAX.get(bits, PANTER_DITE * 4.0**-bits))


def of_entropy_coding(bits: float) -> float:
    """Between the points of the table the logarithm is interpolated."""
    if bits > max(ENTROPY_CODED):
        return math.sqrt(GISH_PIERCE * 4.0**-bits)
    return math.sqrt(_interpolated(ENTROPY_CODED, bits))


def bits_of_entropy_coding(errors: np.ndarray) -> np.ndarray:
    """The inverse of `of_entropy_coding`, of errors above 0 and up to 1."""
    logs = np.log(np.square(errors))
    points, known = list(ENTROPY_CODED), np.log(list(ENTROPY_CODED.values()))
    few: np.ndarray = np.interp(-logs, -known, points)
    many = (math.log(GISH_PIERCE) - logs) / math.log(4)
    return np.where(logs < known[-1], many, few)


def of_unbiased_rounding(bits: float) -> float:
    """Between the points of the table the logarithm is interpolated."""
    if bits > max(UNBIASED):
        return math.sqrt(2 * GISH_PIERCE * 4.0**-bits)
    return math.sqrt(_interpolated(UNBIASED, bits))


def _interpolated(points: Mapping[float, float], bits: float) -> float:
    logs = [math.log(error) for error in points.values()]
    return math.exp(float(np.interp(bits, list(points), logs)))

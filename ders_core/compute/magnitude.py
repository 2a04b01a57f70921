"""Values too small or too large for the powers of them that float32 holds: scaled by powers of two,
which costs no digit."""

from __future__ import annotations

import math

from ders_core.later import torch

COMFORTABLE = 24
"""Values up to 2^±24 have fourth powers, and sums of many of these, within float32."""


def is_comfortable(square: float) -> bool:
    """Whether values with this largest square, or sum of squares, need no scale."""
    return 2.0 ** (-2 * COMFORTABLE) <= square <= 2.0 ** (2 * COMFORTABLE)


def scale_for(largest: float) -> float:
    """A power of two to divide values by, so that float32 holds their powers: 1 for what it holds
    as it is. largest: the largest absolute value; for 0 and what is not finite the result is 1."""
    if not largest or not math.isfinite(largest):
        return 1.0
    exponent = max(math.frexp(largest)[1] - 1, -126)  # so that float32 holds the scale itself
    return 1.0 if abs(exponent) <= COMFORTABLE else math.ldexp(1.0, exponent)


def scale_of(values: torch.Tensor) -> float:
    """`scale_for` the largest absolute value of a tensor of floats."""
    if not values.numel():
        return 1.0
    least, most = torch.aminmax(values)
    return scale_for(max(-float(least), float(most)))


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of `[n, values]` in float64, each divided by its norm, however small that is.
    Rows of zeros stay zeros."""
    exact = rows.double()
    norms = exact.norm(dim=1, keepdim=True)
    return exact / torch.where(norms > 0, norms, 1.0)

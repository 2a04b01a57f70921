"""Where the measured KL rises much faster than predicted, from one size to the next smaller one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ders_core.units import bytes_text, number_text

STEEP = 2.0
"""A KL that rises by this factor more than predicted, from one size to the next smaller one, is a
cliff. What costs more than predicted at all sizes is none."""


@dataclass(frozen=True)
class Measured:
    """A recipe that was measured. nbytes: of the weight files. kl, predicted: nats a token."""

    nbytes: int
    kl: float
    predicted: float

    def rise_from(self, larger: Measured) -> float:
        """By how much more than predicted the KL is the larger one's; 1 as predicted, and where
        nothing is lost."""
        if min(self.kl, larger.kl, self.predicted, larger.predicted) <= 0:
            return 1.0
        return self.kl / larger.kl * larger.predicted / self.predicted


@dataclass(frozen=True)
class Cliff:
    """Between two sizes in bytes that were measured, the KL rises much more than predicted.

    kl_small, kl_large: nats a token. rise: by what factor more than predicted."""

    small: int
    large: int
    kl_small: float
    kl_large: float
    rise: float

    @property
    def sentence(self) -> str:
        return (
            f"between {bytes_text(self.small)} and {bytes_text(self.large)} the KL falls from "
            f"{number_text(self.kl_small)} to {number_text(self.kl_large)}, by "
            f"{number_text(self.rise, 2)} times the predicted factor"
        )


def cliffs(measured: Iterable[Measured]) -> list[Cliff]:
    """Between neighbours in size, the smallest first."""
    found = []
    for small, large in pairwise(sorted(measured, key=lambda each: each.nbytes)):
        rise = small.rise_from(large)
        if rise > STEEP:
            found.append(Cliff(small.nbytes, large.nbytes, small.kl, large.kl, rise))
    return found

"""What may be known of a group's deltas before any of them is encoded, and what a codec expects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class DeltaStatistics(Protocol):
    """Shares of the deltas' energy ΣΔ², over all experts of a group. Each is looked up when a codec
    asks for it. groups: how many groups the model has, whose deltas shrink together."""

    @property
    def groups(self) -> int: ...

    def energy_of_rank(self, rank: int) -> float | None:
        """Share in the `rank` strongest directions of each delta (Σσ² of the largest σ), 0 to 1.
        None where the spectrum is not known up to that rank."""

    def energy_of_smallest(self, share: float) -> float:
        """Share in the entries of least magnitude that make up `share` of all entries, 0 to 1."""


@dataclass(frozen=True)
class Expected:
    """What becomes of deltas: Δ̂ = aΔ + E with E ⟂ Δ. gain: a. noise: ‖E‖/‖Δ‖."""

    gain: float
    noise: float

    @classmethod
    def of_least_squares(cls, error: float) -> Expected:
        """Of a code that has the least error ε = ‖Δ̂ − Δ‖/‖Δ‖ among its own multiples: then
        Δ̂ ⟂ Δ̂ − Δ, so a = ‖Δ̂‖²/‖Δ‖² = 1 − ε²."""
        gain = max(1 - error**2, 0.0)
        return cls(gain, error * math.sqrt(gain))

    @property
    def error(self) -> float:
        """‖Δ̂ − Δ‖/‖Δ‖."""
        return math.hypot(1 - self.gain, self.noise)

    def scaled(self, factor: float) -> Expected:
        """Of the same code times a factor."""
        return Expected(self.gain * factor, self.noise * factor)

"""What may be known of a group's deltas before any of them is encoded."""

from __future__ import annotations

from typing import Protocol


class DeltaStatistics(Protocol):
    """Shares of the deltas' energy ΣΔ², over all experts of a group. Each is looked up when a codec
    asks for it."""

    def energy_of_rank(self, rank: int) -> float | None:
        """Share in the `rank` strongest directions of each delta (Σσ² of the largest σ), 0 to 1.
        None where the spectrum is not known up to that rank."""

    def energy_of_smallest(self, share: float) -> float:
        """Share in the entries of least magnitude that make up `share` of all entries, 0 to 1."""

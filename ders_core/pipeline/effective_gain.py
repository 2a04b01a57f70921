"""How much of a delta counts as given back where what is missing of all deltas adds up.

A code that knows its inputs gives back more of a delta in the directions that inputs have, and less
in others: so does low rank, and rounding that makes up for its errors. By plain inner products,
a = ⟨Δ̂, Δ⟩ / ‖Δ‖², all directions count alike, and too much is missing; by those of curvature and
the inputs' correlation only the strong ones do, and too little is. What a model is found to lose
lies between, see `BY_CORRELATION`. Where errors do not depend on inputs, both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.decompose.distortion import Squares
from ders_core.later import torch

BY_CORRELATION = 0.6
"""Of the way from the plain gain to that by correlation. It brings predictions nearest to what was
measured of GPTQ, low rank, nearest and magnitude (`benchmarks/calibrated_gains.py`)."""


@dataclass(frozen=True)
class Correlated:
    """Σ ⟨Δ̂, Δ⟩ and Σ ⟨Δ, Δ⟩ by curvature and the inputs' correlation, of one or more deltas."""

    shared: float = 0.0
    energy: float = 0.0

    def __add__(self, other: Correlated) -> Correlated:
        return Correlated(self.shared + other.shared, self.energy + other.energy)


def effective_gain(squares: Squares, correlated: Correlated) -> float:
    """Between the plain gain and that by correlation; the plain one where that is not known."""
    sums = torch.tensor([correlated.shared, correlated.energy], dtype=torch.float64)
    return float(mixed_gain(sums.new_tensor(squares.gain), sums))


def mixed_gain(gain: torch.Tensor, correlated: torch.Tensor) -> torch.Tensor:
    """`effective_gain` of one delta, float64 `[]` on its device. gain: the plain one, alike.
    correlated: float64 `[2]`, the numbers of `Correlated`."""
    shared, energy = correlated
    by_correlation = shared / energy
    mixed = (1 - BY_CORRELATION) * gain + BY_CORRELATION * by_correlation
    return torch.where(energy > 0, mixed, gain)

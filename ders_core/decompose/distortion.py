"""Errors of weights: sums of squares in pieces that stay in cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ders_core.compute.magnitude import scale_of
from ders_core.compute.pieces import chunk_values, pieces
from ders_core.later import torch


@dataclass(frozen=True)
class Squares:
    """Σ(Ŵ−W)², Σ(W−base)², ΣW² and Σ(Ŵ−W)(W−base) of one or more weights, in float64: the squares
    of float32 weights below 1e-19 and above 1e19 lie outside of float32."""

    error: float = 0.0
    delta: float = 0.0
    weight: float = 0.0
    shared: float = 0.0

    def __add__(self, other: Squares) -> Squares:
        return Squares(
            self.error + other.error,
            self.delta + other.delta,
            self.weight + other.weight,
            self.shared + other.shared,
        )

    @property
    def gain(self) -> float:
        """a = ⟨Δ̂, Δ⟩/‖Δ‖², how much of the deltas is given back; 1 where there are none."""
        return 1 + self.shared / self.delta if self.delta else 1.0

    @property
    def noise(self) -> float:
        """‖E‖/‖Δ‖ of what is no multiple of Δ: Δ̂ = aΔ + E with E ⟂ Δ; 0 where Δ is zero."""
        if not self.delta:
            return 0.0
        return math.sqrt(max(self.error / self.delta - (1 - self.gain) ** 2, 0.0))

    @property
    def relative(self) -> tuple[float, float]:
        """(‖Ŵ−W‖/‖Δ‖, ‖Ŵ−W‖/‖W‖); 0 where there was nothing to lose."""
        return relative_errors(self.error, self.delta, self.weight)


def compare(
    synthesized: torch.Tensor, weight: torch.Tensor, base: torch.Tensor | None = None
) -> Squares:
    """The sums for one expert's weight; tensors of any dtypes and one shape. Without a base, the
    sums with the delta are 0."""
    tensors = [weight, synthesized] if base is None else [weight, synthesized, base]
    flat = [tensor.reshape(-1) for tensor in tensors]
    size = flat[0].numel()
    step = min(chunk_values(weight.device), max(size, 1))
    desk = torch.empty(3, step, dtype=torch.float64, device=weight.device)
    sums = torch.zeros(4, dtype=torch.float64, device=weight.device)
    for part in pieces(size, step):
        exact, *differences = desk[:, : part.stop - part.start]
        exact.copy_(flat[0][part])
        for number, other in enumerate(flat[1:]):
            torch.sub(exact, other[part], out=differences[number])
            sums[number] += torch.dot(differences[number], differences[number])
        sums[2] += torch.dot(exact, exact)
        if base is not None:
            sums[3] -= torch.dot(*differences)
    return Squares(*sums.tolist())


def is_finite(weight: torch.Tensor) -> bool:
    """Whether every value is finite. Sums are looked at first: a value that is not finite makes
    them so too."""
    flat = weight.reshape(-1)
    return all(
        math.isfinite(float(part.sum(dtype=torch.float32))) or bool(torch.isfinite(part).all())
        for part in flat.split(1 << 22)
    )


def squared(tensor: torch.Tensor) -> float:
    """‖·‖² summed in float64, a piece at a time."""
    flat = tensor.reshape(-1)
    return sum(float(chunk.double().square().sum()) for chunk in flat.split(1 << 18))


def relative_errors(error: float, delta_energy: float, weight_energy: float) -> tuple[float, float]:
    """(‖Ŵ−W‖/‖Δ‖, ‖Ŵ−W‖/‖W‖) from sums of squares; 0 where there was nothing to lose."""
    return (
        (error / delta_energy) ** 0.5 if delta_energy else 0.0,
        (error / weight_energy) ** 0.5 if weight_energy else 0.0,
    )


def output_squared(error: torch.Tensor, moments: torch.Tensor) -> float:
    """E‖E·x‖² for an error E `[out, in]`, of inputs x with the second moments `[in, in]` float32,
    or `[in]` their diagonal."""
    rows = error.float()
    scale = scale_of(rows)
    rows = rows / scale
    weighted = rows * moments if moments.dim() == 1 else rows @ moments
    return max(float((weighted * rows).sum(dtype=torch.float64)), 0.0) * scale**2

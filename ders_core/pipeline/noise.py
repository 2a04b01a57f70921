"""What the noise of a matrix costs: of Δ̂ = Δ + E that part of E which is no multiple of Δ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.codecs.curvature import Curvature
from ders_core.codecs.synthesis import difference
from ders_core.later import torch
from ders_core.pipeline.effective_gain import Correlated


@dataclass(frozen=True)
class NoiseSums:
    """⟨N, N⟩, ⟨N, Δ⟩ and ⟨Δ, Δ⟩ by a curvature, for N = Δ̂ − gain · Δ. With the plain gain N is as
    small as noise is, so that nothing cancels."""

    gain: float
    noise: float
    shared: float
    energy: float

    @property
    def correlated(self) -> Correlated:
        return Correlated(self.shared + self.gain * self.energy, self.energy)

    def cost(self, kept: float) -> float:
        """½ ‖Δ̂ − kept · Δ‖², in nats a token."""
        more = self.gain - kept
        noise = self.noise + 2 * more * self.shared + more**2 * self.energy
        return max(noise, 0.0) / 2


@dataclass(frozen=True)
class Deviation:
    """decoded, weight, start: Ŵ, W and what Δ and Δ̂ are taken from, `[out, in]` of any dtypes on
    one device; read a few rows at a time."""

    decoded: torch.Tensor
    weight: torch.Tensor
    start: torch.Tensor

    def noise_sums(
        self, gain: float, curvature: Curvature, moments: torch.Tensor | None
    ) -> NoiseSums:
        """moments: as of `Curvature.cost`."""

        def read(rows: slice) -> Sequence[torch.Tensor]:
            return self._noise_and_delta(rows, gain)

        device = self.weight.device
        (noise, shared), (_, energy) = curvature.inner_products(read, 2, device, moments)
        return NoiseSums(gain, noise, shared, energy)

    def noise_cost(self, gain: float, curvature: Curvature, moments: torch.Tensor | None) -> float:
        """½ ‖Δ̂ − gain · Δ‖², in nats a token, by half of the work."""

        def read(rows: slice) -> Sequence[torch.Tensor]:
            return self._noise_and_delta(rows, gain)[:1]

        return curvature.inner_products(read, 1, self.weight.device, moments)[0][0] / 2

    def _noise_and_delta(self, rows: slice, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows, float32 `[rows, in]` each."""
        weight = self.weight[rows]
        delta = difference(weight, self.start[rows])
        return difference(self.decoded[rows], weight).add_(delta, alpha=1 - gain), delta

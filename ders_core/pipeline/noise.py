"""What the noise of a matrix costs: of Δ̂ = Δ + E that part of E which is no multiple of Δ.

All sums are float64 `[]` on the device of the matrix, and nothing waits for them; those of several
codes of one matrix on a CPU, `[codes]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.codecs.curvature import Curvature, Weigh, Weighed
from ders_core.codecs.synthesis import difference
from ders_core.later import torch


@dataclass(frozen=True)
class NoiseSums:
    """⟨N, N⟩, ⟨N, Δ⟩ and ⟨Δ, Δ⟩ by a curvature, for N = Δ̂ − gain · Δ. With the plain gain N is as
    small as noise is, so that nothing cancels."""

    gain: torch.Tensor
    noise: torch.Tensor
    shared: torch.Tensor
    energy: torch.Tensor

    @property
    def correlated(self) -> torch.Tensor:
        """The numbers of `ders_core.pipeline.effective_gain.Correlated`, `[2]`."""
        return torch.stack([self.shared + self.gain * self.energy, self.energy])

    def cost(self, kept: torch.Tensor) -> torch.Tensor:
        """½ ‖Δ̂ − kept · Δ‖², in nats a token."""
        more = self.gain - kept
        noise = self.noise + 2 * more * self.shared + more.square() * self.energy
        return noise.clamp_min(0) / 2


@dataclass(frozen=True)
class Deviation:
    """decoded, weight, start: Ŵ, W and what Δ and Δ̂ are taken from, `[out, in]` of any dtypes on
    one device; read a few rows at a time."""

    decoded: torch.Tensor
    weight: torch.Tensor
    start: torch.Tensor

    def noise_sums(
        self, gain: torch.Tensor, curvature: Curvature, moments: torch.Tensor | None
    ) -> NoiseSums:
        """gain: float64 `[]`. moments: as of `Curvature.cost`."""

        def read(rows: slice, weigh: Weigh) -> Sequence[Weighed]:
            return [weigh(each) for each in self._noise_and_delta(rows, gain)]

        sums = curvature.inner_products(read, 2, self.weight.device, moments)
        return NoiseSums(gain, sums[0, 0], sums[0, 1], sums[1, 1])

    def noise_cost(
        self, gain: torch.Tensor, curvature: Curvature, moments: torch.Tensor | None
    ) -> torch.Tensor:
        """½ ‖Δ̂ − gain · Δ‖², in nats a token, by half of the work."""

        def read(rows: slice, weigh: Weigh) -> Sequence[Weighed]:
            return [weigh(self._noise_and_delta(rows, gain)[0])]

        return curvature.inner_products(read, 1, self.weight.device, moments)[0, 0] / 2

    def _noise_and_delta(
        self, rows: slice, gain: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows, float32 `[rows, in]` each."""
        weight = self.weight[rows]
        delta = difference(weight, self.start[rows])
        missing = (1 - gain).float()
        return difference(self.decoded[rows], weight).addcmul_(delta, missing), delta


@dataclass(frozen=True)
class Deviations:
    """Several codes of one matrix. errors: Ŵ − W of each, `[codes, out, in]` float32 on the CPU.
    delta: `[out, in]` float32."""

    errors: torch.Tensor
    delta: torch.Tensor

    def noise_sums(
        self, gains: torch.Tensor, curvature: Curvature, moments: torch.Tensor | None
    ) -> NoiseSums:
        """gains: float64 `[codes]`. moments: as of `Curvature.cost`."""
        stack = torch.cat([self._noise(gains), self.delta.unsqueeze(0)])
        squares, shared = curvature.squares_and_last(stack, moments)
        return NoiseSums(gains, squares[:-1], shared[:-1], squares[-1].expand_as(gains))

    def noise_costs(
        self, gains: torch.Tensor, curvature: Curvature, moments: torch.Tensor | None
    ) -> torch.Tensor:
        """½ ‖Δ̂ − gain · Δ‖² of each, in nats a token."""
        return curvature.squares(self._noise(gains), moments) / 2

    def _noise(self, gains: torch.Tensor) -> torch.Tensor:
        return self.errors.addcmul(self.delta, (1 - gains).float()[:, None, None])

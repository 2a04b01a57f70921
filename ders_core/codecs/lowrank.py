"""`lowrank`: the delta becomes the product of a tall and a wide matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from ders_core.checkpoint.header import TensorSpec
from ders_core.codecs.base import DeltaCodec, EncodeContext, Parts, register

OVERSAMPLING = 16
POWER_ITERATIONS = 4
EXACT_BELOW = 512
"""Matrices whose shorter side is at most this take the exact SVD; it is as quick."""


@register
class LowRank(DeltaCodec):
    """Δ ≈ L·R with L `[out, rank]`, R `[rank, in]`, the best in squared error (Eckart-Young 1936).

    Give either a `rank`, or the share `energy` of Σσ² that the group's experts must keep together;
    the smallest such rank is then the same for all experts of the group. Long thin spectra are
    taken by a randomized SVD (Halko et al. 2011, 4 power iterations), short ones exactly.
    """

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "Keeps each delta's strongest directions as two thin matrices."
    source: ClassVar[str] = "DeRS (arXiv 2503.01359) §3; D2-MoE (arXiv 2502.17298)"

    rank: int | None = Field(default=None, ge=1, description="directions that are kept")
    energy: float | None = Field(
        default=None, gt=0, le=1, description="share of the squared singular values to keep"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> LowRank:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give either a rank or an energy, and not both")
        return self

    @property
    def label(self) -> str:
        return f"rank {self.rank}" if self.rank else f"rank for {100 * (self.energy or 0):g} %"

    @property
    def exact(self) -> bool:
        return self.rank is not None

    def _rank(self, shape: tuple[int, int]) -> int:
        return min(self.rank or min(shape), *shape)

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        rank = self._rank(shape)
        return {
            "left": TensorSpec(dtype, (shape[0], rank)),
            "right": TensorSpec(dtype, (rank, shape[1])),
        }

    def fit(self, deltas: Iterable[torch.Tensor]) -> DeltaCodec:
        if self.energy is None:
            return self
        pooled: torch.Tensor | None = None
        for delta in deltas:
            thin = delta if delta.shape[0] <= delta.shape[1] else delta.T
            exact = thin.double() if thin.shape[0] <= EXACT_BELOW else thin
            squares = torch.linalg.eigvalsh(exact @ exact.T).flip(0).clamp_min(0).double()
            pooled = squares if pooled is None else pooled + squares
        if pooled is None or not float(pooled.sum()):
            return LowRank(rank=1)
        reached = pooled.cumsum(0) >= self.energy * pooled.sum() * (1 - 1e-12)
        return LowRank(rank=min(int(reached.long().argmax()) + 1, pooled.numel()))

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        rank = self._rank((delta.shape[0], delta.shape[1]))
        left, sigma, right = _svd(delta, rank, context.seed)
        root = sigma.sqrt()
        return {
            "left": (left * root).to(context.dtype).contiguous(),
            "right": (root[:, None] * right).to(context.dtype).contiguous(),
        }

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        return parts["left"].float() @ parts["right"].float()


def _svd(
    delta: torch.Tensor, rank: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading `rank` singular triples: `[out, r]`, `[r]`, `[r, in]`."""
    short = min(delta.shape)
    if short <= EXACT_BELOW or 4 * (rank + OVERSAMPLING) > short:
        left, sigma, right = torch.linalg.svd(delta, full_matrices=False)
        return left[:, :rank], sigma[:rank], right[:rank]
    devices = [delta.device] if delta.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        left, sigma, right = torch.svd_lowrank(delta, q=rank + OVERSAMPLING, niter=POWER_ITERATIONS)
    return left[:, :rank], sigma[:rank], right[:, :rank].T

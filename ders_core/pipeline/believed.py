"""Second moments as far as the tokens that were read can tell them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ders_core.decompose.distortion import outputs_squared
from ders_core.later import torch

DOUBT = 1.5
"""How much inputs' correlations are doubted, for each input of the weight and token that was read.

A matrix that was rounded by correlations of few tokens looks far better to these tokens than to
others. With this number it costs others least at equal bytes, or within 2 % of that, from 1024 to
16,384 tokens of 576 and 1536 inputs, and what it is thought to cost is what it costs them
(`benchmarks/believed_moments.py`)."""


@dataclass(frozen=True)
class Inputs:
    """believed: E[x xᵀ] `[in, in]` float32, shrunken towards its diagonal, which stays (as Ledoit
    and Wolf do, J. Multivariate Analysis 88, 2004); or the diagonal `[in]`, believed as it is.
    share: what is left of correlations; what was measured is known from it, without a second
    matrix of that size."""

    believed: torch.Tensor
    share: float = 1.0

    @classmethod
    def of(cls, moments: torch.Tensor, tokens: float) -> Inputs:
        """moments: measured on `tokens` inputs; a matrix is overwritten."""
        if moments.dim() == 1:
            return cls(moments)
        diagonal, doubt = moments.diagonal().clone(), 1 + DOUBT * len(moments) / tokens
        moments.div_(doubt).diagonal().copy_(diagonal)
        return cls(moments, 1 / doubt)

    def on(self, device: torch.device) -> Inputs:
        return replace(self, believed=self.believed.to(device))

    def output_squared(self, error: torch.Tensor) -> torch.Tensor:
        """E‖E·x‖² for an error E `[out, in]`, of the inputs as they were measured: float64 `[]` on
        their device, which nothing waits for."""
        return self.outputs_squared(error.unsqueeze(0))[0]

    def outputs_squared(self, errors: torch.Tensor) -> torch.Tensor:
        """The same of each of some errors `[n, out, in]`: float64 `[n]`."""
        shrunken = outputs_squared(errors, self.believed)
        if self.share == 1:
            return shrunken
        alone = outputs_squared(errors, self.believed.diagonal())
        return ((shrunken - (1 - self.share) * alone) / self.share).clamp_min(0)

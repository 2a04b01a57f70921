"""Second moments as far as the tokens that were read can tell them."""

from __future__ import annotations

from ders_core.later import torch

DOUBT = 1.5
"""How much inputs' correlations are doubted, for each input of the weight and token that was read.

A matrix that was rounded by correlations of few tokens looks far better to these tokens than to
others. With this number it costs others least at equal bytes, or within 2 % of that, from 1024 to
16,384 tokens of 576 and 1536 inputs, and what it is thought to cost is what it costs them
(`benchmarks/believed_moments.py`)."""


def believed(moments: torch.Tensor, tokens: float) -> torch.Tensor:
    """E[x xᵀ] `[in, in]` float32 that was measured on `tokens` inputs, shrunken towards its
    diagonal, which stays (as Ledoit and Wolf do, J. Multivariate Analysis 88, 2004). A diagonal
    `[in]` is believed as it is."""
    if moments.dim() == 1:
        return moments
    shrunken = moments / (1 + DOUBT * len(moments) / tokens)
    shrunken.diagonal().copy_(moments.diagonal())
    return shrunken

"""Products of two thin factors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

from ders_core.compute.pieces import row_pieces
from ders_core.later import torch

TOGETHER = 1 << 20
"""Values of the product. Other pieces have other last bits, so this depends on nothing."""


def row_products(left: torch.Tensor, right: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """left · right, of `[out, rank]` and `[rank, in]`: rows and their products `[rows, in]`."""
    for rows in row_pieces((len(left), right.shape[1]), TOGETHER):
        yield rows, left[rows] @ right

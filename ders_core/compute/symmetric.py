"""Quadratic forms of a symmetric matrix, by half of a product."""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import pieces
from ders_core.later import torch

COLUMNS = 256
"""Of a block on the diagonal."""

ROWS = 256
"""Rows that are multiplied at a time on a CPU: so many are as quick as many more, and few for
memory."""


def half_product(rows: torch.Tensor, symmetric: torch.Tensor) -> torch.Tensor:
    """H `[n, k]` float32 of rows X alike and a symmetric M `[k, k]`, which X M Xᵀ is known from
    although it takes half as long as X M: (H ∘ X) summed over columns is the diagonal of X M Xᵀ;
    and with rows Y and their H', (H ∘ Y + H' ∘ X) / 2 so summed is that of X M Yᵀ.

    It is X (2T + D), with D the blocks of M on the diagonal and T those above.
    """
    half = fresh(rows.shape, torch.float32, rows.device)
    for block in pieces(len(symmetric), COLUMNS):
        half[:, block] = rows[:, block] @ symmetric[block, block]
        before = slice(0, block.start)
        half[:, block].addmm_(rows[:, before], symmetric[before, block], alpha=2)
    return half


def values_at_once(shape: Sequence[int], device: torch.device) -> int:
    """How many values of a matrix `[out, in]` are multiplied at a time."""
    out, width = shape
    return (ROWS if device.type == "cpu" else max(out, 1)) * width

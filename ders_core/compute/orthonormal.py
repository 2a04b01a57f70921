"""Orthonormal columns of thin matrices.

On a CPU Householder's QR makes them. Elsewhere they come from a Cholesky factor of the columns'
products in float64, which takes a few products of matrices and waits for nothing. A small share is
added to the products first, so that there is a factor, and all is done again (shifted CholeskyQR:
Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa, arXiv 1809.11085).
"""

from __future__ import annotations

from ders_core.later import torch

PASSES, ORTHOGONAL = 6, 1e-5
"""A block is orthogonal to the basis when no cosine is above the second; float32 leaves about 1e-7,
and up to 5e-6 in a pass that still has much to remove. Only a matrix of zeros needs four passes."""

BLIND_PASSES = 4
"""Where a look at the cosines would wait. Each pass but the last makes columns as long again as
they were before it, so that what rounding leaves of nothing is orthogonal in the end."""

SHIFT = 1e-10
"""Share of the columns' squares that is added to them, far above what float64 rounds."""

GONE = 0.5
"""A column that is no longer than this before the last pass depends on others: it becomes zeros."""


def orthonormal(block: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns `[n, k]` float32, n ≥ k, that span those of a float32 block. Where the
    block has less than k dimensions, columns on a CPU are made up; elsewhere they may be zeros."""
    if block.device.type == "cpu":
        columns: torch.Tensor = torch.linalg.qr(block)[0]
        return columns
    return _orthonormal_to(block.new_empty(len(block), 0), block)


def orthonormal_to(basis: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """As `orthonormal`, and orthogonal to a basis `[n, m]`, whose own columns are orthonormal or
    zeros.

    Twice is enough for what is new in the block (Parlett 1998, §6.9). Where a block has nothing
    new, QR makes columns up, and these may be in the space: then once more, or more.
    """
    if block.device.type != "cpu":
        return _orthonormal_to(basis, block)
    for turn in range(PASSES):
        block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block)[0]
        if turn and float((basis.mT @ block).abs().max()) < ORTHOGONAL:
            break
    return block


def _orthonormal_to(basis: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    for _ in range(BLIND_PASSES - 1):
        block = _factored(_without(basis, _unit_columns(block)))
    block = torch.where(block.norm(dim=0) > GONE, block, 0.0)
    return _factored(_without(basis, block))


def _without(basis: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """What the block has outside of the space of the basis."""
    return block - basis @ (basis.mT @ block)


def _unit_columns(block: torch.Tensor) -> torch.Tensor:
    """Columns of length 1, or 0. Two steps: squares of tiny ones are nothing."""
    block = block / _or_one(block.abs().amax(0))
    return block / _or_one(block.norm(dim=0))


def _or_one(lengths: torch.Tensor) -> torch.Tensor:
    return torch.where(lengths > 0, lengths, 1.0)


def _factored(block: torch.Tensor) -> torch.Tensor:
    """Block · L⁻ᵀ with L·Lᵀ = blockᵀ·block, shifted."""
    exact = block.double()
    products = exact.mT @ exact
    products.diagonal().add_(SHIFT)
    lower = torch.linalg.cholesky_ex(products)[0]
    columns: torch.Tensor = torch.linalg.solve_triangular(lower.mT, exact, upper=True, left=False)
    return columns.float()

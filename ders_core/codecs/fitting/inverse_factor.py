"""The triangle by which one column's error is left to those after it."""

from __future__ import annotations

from ders_core.later import torch

SMALL = 256
"""Triangles of this size are inverted by substitution, larger ones by products of their parts."""


def inverse_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangular U with UᵀU = H⁻¹ of a positive definite H `[n, n]`, float64.

    With R the upper triangular factor of H = R·Rᵀ, which is the Cholesky factor of the reversed
    matrix, reversed, U is R⁻¹. Of an error in column j that those after it make up for as well as
    they can, 1/U_jj² is left.
    """
    upper: torch.Tensor = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    _invert(upper)
    return upper


def _invert(upper: torch.Tensor) -> None:
    """An upper triangular matrix becomes its inverse, in place."""
    size = len(upper)
    if size <= SMALL:
        unit = torch.eye(size, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, unit, upper=True))
        return
    half = size // 2
    first, corner, last = upper[:half, :half], upper[:half, half:], upper[half:, half:]
    _invert(first)
    _invert(last)
    corner.copy_(first @ corner @ last).neg_()

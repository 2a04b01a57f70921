"""Eigenvalues of symmetric matrices that are not negative, in float64.

torch's solvers wait for a GPU, to see whether they converged. So one of them is asked once for many
matrices, and the largest eigenvalue alone is found without any.
"""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.later import torch

Eigen = tuple["torch.Tensor", "torch.Tensor"]
"""(eigenvalues `[k]`, descending and not below 0; eigenvectors, the columns of `[k, k]`)."""

SQUARINGS = 14
"""Of a matrix, for its largest eigenvalue: what the others add to the trace is then below 0.1 % of
it for any matrix that fits into memory."""


def eigen_of(matrix: torch.Tensor) -> Eigen:
    """Of one matrix `[k, k]`. A GPU is waited for."""
    return eigen_of_each([matrix])[0]


def eigen_of_each(matrices: Sequence[torch.Tensor]) -> list[Eigen]:
    """Of matrices `[k, k]` of one size on one device. A GPU is waited for once."""
    if not matrices:
        return []
    if matrices[0].device.type == "cpu":
        solved = [torch.linalg.eigh(matrix) for matrix in matrices]
    else:
        values, vectors = torch.linalg.eigh(torch.stack([*matrices]))
        solved = [*zip(values, vectors, strict=True)]
    return [(values.clamp_min(0).flip(0), vectors.flip(1)) for values, vectors in solved]


def eigenvalues_of_each(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The first of `eigen_of_each` alone."""
    if not matrices:
        return []
    if matrices[0].device.type == "cpu":
        solved = [torch.linalg.eigvalsh(matrix) for matrix in matrices]
    else:
        solved = [*torch.linalg.eigvalsh(torch.stack([*matrices]))]
    return [values.flip(0).clamp_min(0) for values in solved]


def largest_eigenvalue(matrix: torch.Tensor) -> torch.Tensor:
    """Of one matrix `[k, k]`, float64 `[]` on its device, which nothing waits for; up to 0.1 % too
    large. The matrix is squared again and again, until the largest eigenvalue has all of the
    trace."""
    power, share = matrix, 1.0
    logarithm = matrix.new_zeros(())
    for _ in range(SQUARINGS):
        trace = power.trace()
        height = torch.where(trace > 0, trace, 1.0)
        logarithm = logarithm + share * height.log()
        power, share = power / height, share / 2
        power = power @ power
    logarithm = logarithm + share * power.trace().log()
    return logarithm.exp()

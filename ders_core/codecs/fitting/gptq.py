"""Rounding that makes up for its errors: what one column loses, the columns after it take over.

GPTQ (Frantar et al., arXiv 2210.17323), after Optimal Brain Surgeon (Hassibi and Stork 1992): with
H = E[x xᵀ] of the inputs, it minimises E‖(Δ̂ − Δ)x‖² column by column, the weightiest column first.
"""

from __future__ import annotations

from collections.abc import Callable

from ders_core.later import torch

DAMPING = 0.01
"""Share of H's mean diagonal that is added to it."""

BLOCK = 128
"""Columns between two updates of all that follow."""

Round = Callable[["torch.Tensor", int], "torch.Tensor"]
"""(values `[out]` of a column, its number) -> what they will be decoded as; it notes the codes."""


def compensated(delta: torch.Tensor, moments: torch.Tensor, round_column: Round) -> None:
    """Call `round_column` for every column of `delta` `[out, in]`, with errors made up for.

    moments: `[in, in]` float32, symmetric.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    rest = delta[:, order].clone()
    factor = _inverse_factor(moments[order][:, order])
    width = delta.shape[1]
    for begin in range(0, width, BLOCK):
        end = min(begin + BLOCK, width)
        errors = torch.empty(delta.shape[0], end - begin, device=delta.device)
        for column in range(begin, end):
            values = rest[:, column].clone()
            lost = (values - round_column(values, int(order[column]))) / factor[column, column]
            errors[:, column - begin] = lost
            rest[:, column + 1 : end] -= torch.outer(lost, factor[column, column + 1 : end])
        rest[:, end:] -= errors @ factor[begin:end, end:]


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped inverse, `[in, in]` float32."""
    diagonal = moments.diagonal().double()
    damping = DAMPING * float(diagonal.mean()) or 1.0
    damped = moments.double() + damping * torch.eye(len(moments), device=moments.device).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()

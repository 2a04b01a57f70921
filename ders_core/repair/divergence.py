"""The loss: KL(original ‖ repaired), with its gradient computed a few tokens at a time."""

from __future__ import annotations

from typing import Any

import torch

ROWS = 256
"""Tokens whose probabilities are computed at once."""


class _MeanDivergence(torch.autograd.Function):
    """The gradient in logits is (q − p) / tokens, so that no probabilities are kept."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        slopes, total = torch.empty_like(student), student.new_zeros((), dtype=torch.float64)
        for begin in range(0, len(student), ROWS):
            rows = slice(begin, begin + ROWS)
            wanted, said = (each[rows].float().log_softmax(-1) for each in (teacher, student))
            chances = wanted.exp()
            total += (chances * (wanted - said)).sum(dtype=torch.float64)
            slopes[rows] = said.exp_().sub_(chances)
        ctx.save_for_backward(slopes)
        return (total / max(len(student), 1)).to(student.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * (gradients[0] / max(len(slopes), 1)), None


def mean_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean KL(teacher ‖ student) over tokens, in nats; differentiable in the student's logits.

    student, teacher: logits `[..., vocabulary]`. Returns a scalar of the student's dtype.
    """
    width = student.shape[-1]
    loss: torch.Tensor = _MeanDivergence.apply(
        student.reshape(-1, width), teacher.reshape(-1, width)
    )
    return loss

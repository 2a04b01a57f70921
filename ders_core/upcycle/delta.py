"""A set of deltas while it is trained: F(Δ_i) of one projection, for every expert i.

There are two ways to compute with it. A `ProductDelta` multiplies rows with F(Δ_i) itself, so that
the product with W_shared is made once a token, for all of its experts. A `MatrixDelta` is written
into its expert's matrix, which is built for one expert at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from ders_core.codecs import Parts

Moments = Callable[[nn.Parameter], Sequence[torch.Tensor]]
"""The tensors that an optimizer keeps for a parameter, of its shape; none before its first step."""


class Delta(nn.Module, ABC):
    """The first dimension of every parameter and persistent buffer is that of the experts."""

    @abstractmethod
    def matrix(self, expert: int) -> torch.Tensor:
        """F(Δ_i) `[out, in]` of an expert, differentiable in the parameters."""

    @abstractmethod
    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        """What the form's codec stores of an expert, on the CPU; floats as `dtype`."""

    def as_products(self) -> Sequence[ProductDelta]:
        """What of it multiplies rows."""
        return ()

    def as_matrices(self) -> Sequence[MatrixDelta]:
        """What of it is written into matrices."""
        return ()

    def before_step(self, step: int, steps: int) -> None:
        """Prepare for the backward passes of one step of training, counted from 1 to `steps`."""

    def after_step(self, moments: Moments) -> None:
        """Change what a form learns besides its parameters, after the optimizer's step."""


class ProductDelta(Delta):
    """Multiplies rows with F(Δ_i). A form that knows a cheaper way than by the whole matrix
    overrides `forward`."""

    def forward(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """x·F(Δ_i)ᵀ `[rows, out]`. rows: `[rows, in]`, sorted by expert; counts: rows of each."""
        pieces = enumerate(rows.split(list(counts)))
        return torch.cat([times(piece, self.matrix(expert)) for expert, piece in pieces])

    def as_products(self) -> Sequence[ProductDelta]:
        return (self,)


class MatrixDelta(Delta):
    """Is added to the matrix of one expert at a time. What is trained is `values` `[N, ...]`."""

    values: nn.Parameter

    @abstractmethod
    def add_to(self, weight: torch.Tensor, expert: int) -> None:
        """Add F(Δ_i) in place, without a gradient. weight: `[out, in]` float32, contiguous."""

    @abstractmethod
    def gradient(self, expert: int, weight_gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of an expert's values. weight_gradient: `[out, in]`, of W_i."""

    def as_matrices(self) -> Sequence[MatrixDelta]:
        return (self,)


def times(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x·Wᵀ in the dtype of x: what is trained is float32 whatever the others are."""
    return F.linear(rows, weight.to(rows.dtype))


def stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A parameter as it is written: detached, contiguous, on the CPU."""
    return tensor.detach().to("cpu", dtype).contiguous()

"""One projection of all experts, as the FFN of an upcycled layer computes with it.

Rows of a batch come sorted by expert. `spread` is for gate and up: what every chosen expert makes
of a token. `gather` is for down: what they make together, Σ_k w_k·E_k(h_k). How the products are
made depends on how the experts are held: on one base (`ders_core.upcycle.shared`) or as copies
(`ders_core.upcycle.separate`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ders_core.codecs import Parts
from ders_core.upcycle.delta import Delta


@dataclass(frozen=True)
class Routes:
    """Where the tokens of a batch go: rows sorted by expert.

    tokens: int64 `[rows]`, whose row it is. experts: int64 `[rows]`, ascending. counts: rows of
    each expert. size: tokens in the batch.
    """

    tokens: torch.Tensor
    experts: torch.Tensor
    counts: tuple[int, ...]
    size: int


class ExpertLinear(nn.Module, ABC):
    """One projection `[out, in]` of N experts; each has a `bias` `[N, out]` where the dense
    layer has one."""

    base: nn.Parameter | None
    """W_shared `[out, in]`; None if the experts share no base."""
    bias: nn.Parameter | None
    deltas: nn.ModuleList
    """Sets of deltas on the base, the oldest first."""

    @abstractmethod
    def matrix(self, expert: int) -> torch.Tensor:
        """W_i `[out, in]` of an expert, differentiable."""

    @abstractmethod
    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        """What the codec of an expert stores, on the CPU; floats as `dtype`."""

    @abstractmethod
    def products(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        """x·W_iᵀ `[rows, out]` for each row's expert. tokens: `[tokens, in]`."""

    @abstractmethod
    def sums(
        self, rows: torch.Tensor, routes: Routes
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The products of `rows` `[rows, in]`: what is summed over each token's rows already
        `[tokens, out]`, and what is still to be summed `[rows, out]`; at least one of them."""

    def sets(self) -> Sequence[Delta]:
        """The sets of deltas, the oldest first."""
        return cast("list[Delta]", list(self.deltas))

    def spread(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        """tokens: `[tokens, in]`; `[rows, out]`."""
        rows = self.products(tokens, routes)
        if self.bias is None:
            return rows
        return rows + self.bias.index_select(0, routes.experts).to(rows.dtype)

    def gather(self, rows: torch.Tensor, weights: torch.Tensor, routes: Routes) -> torch.Tensor:
        """rows: `[rows, in]`; weights: `[rows]`; `[tokens, out]`."""
        together, apart = self.sums(rows * weights.unsqueeze(1).to(rows.dtype), routes)
        if self.bias is not None:
            bias = self.bias.index_select(0, routes.experts) * weights.unsqueeze(1)
            apart = bias if apart is None else apart + bias
        if apart is None:
            assert together is not None
            return together
        summed = sum_tokens(apart, routes)
        return summed if together is None else together + summed.to(together.dtype)


def sum_tokens(rows: torch.Tensor, routes: Routes) -> torch.Tensor:
    """The sum of each token's rows: `[tokens, width]`."""
    zeros = torch.zeros(routes.size, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return zeros.index_add(0, routes.tokens, rows)

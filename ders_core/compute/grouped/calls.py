"""Grouped products: what is asked of those who multiply, and what is multiplied. Without Triton."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.compute.grouped.blocks import PairBlocks
from ders_core.later import torch


@dataclass(frozen=True)
class GroupedCall:
    """What is multiplied. x: `[n, in]`, contiguous. each: how many pairs a row of x is of: pair p
    takes row p // each. shares: float32 `[pairs]`, what a pair's product is multiplied by; None
    for 1."""

    x: torch.Tensor
    each: int
    blocks: PairBlocks
    shares: torch.Tensor | None = None


class GroupedProducts(ABC):
    """The matrices of all experts of a projection, on a GPU, as they are packed."""

    @abstractmethod
    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        """y[pair, column:column + out] += share · W_expert x of every pair that has an expert.

        y: float32 `[pairs, ≥ column + out]`, contiguous. Sums are taken in float32, of products in
        the dtype of x.
        """


@dataclass(frozen=True)
class GroupedSum(GroupedProducts):
    """Matrices that are sums of others."""

    each: Sequence[GroupedProducts]

    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        for products in self.each:
            products.add(call, y, column)

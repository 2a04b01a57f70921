"""Grouped products with matrices of floats: of a low rank's factors, two of them in a row."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from ders_core.compute.grouped.calls import GroupedCall, GroupedProducts
from ders_core.compute.grouped.products import add_to, inputs_of, launch
from ders_core.later import torch


@dataclass(frozen=True)
class GroupedMatrices(GroupedProducts):
    """matrices: floats `[experts, out, in]`, contiguous."""

    matrices: torch.Tensor

    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        out = self.matrices.shape[1]
        launch(_multiply, out, call, y, column, weights=self.matrices)


@dataclass(frozen=True)
class GroupedFactors(GroupedProducts):
    """Δ̂ = L R. left: `[experts, out, rank]`, right: `[experts, rank, in]`, contiguous."""

    left: torch.Tensor
    right: torch.Tensor

    def add(self, call: GroupedCall, y: torch.Tensor, column: int) -> None:
        rank = self.right.shape[1]
        inner = torch.zeros(len(y), rank, dtype=torch.float32, device=y.device)
        GroupedMatrices(self.right).add(GroupedCall(call.x, call.each, call.blocks), inner, 0)
        outer = GroupedCall(inner.to(call.x.dtype), 1, call.blocks, call.shares)
        GroupedMatrices(self.left).add(outer, y, column)


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    y,
    pairs,
    experts,
    shares,
    weights,
    each,
    out,
    width,
    columns,
    column,
    pairs_taken: tl.constexpr,
    rows_taken: tl.constexpr,
    step: tl.constexpr,
    factors: tl.constexpr,
):
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs + tl.program_id(0) * pairs_taken + tl.arange(0, pairs_taken))
        rows = tl.program_id(1) * rows_taken + tl.arange(0, rows_taken)
        begin = weights + expert * out * width + rows.to(tl.int64)[:, None] * width
        sums = tl.zeros((pairs_taken, rows_taken), tl.float32)
        for first in range(0, width, step):
            entries = first + tl.arange(0, step)
            inside = (rows < out)[:, None] & (entries < width)[None, :]
            matrix = tl.load(begin + entries[None, :], mask=inside, other=0.0).to(factors)
            taken = inputs_of(x, pair, each, width, entries).to(factors)
            sums += tl.dot(taken, tl.trans(matrix), input_precision="ieee")
        add_to(y, sums, pair, rows, shares, out, columns, column)

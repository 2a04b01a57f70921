"""Experts on one base: W_i = W_shared + Σ F(Δ_i), computed without the N whole matrices.

With product deltas alone, the product with W_shared is the same for all of a token's experts, so it
is made once a token (`W x` for spread, `W·Σ_k w_k h_k` for gather). With matrix deltas one expert's
matrix is built at a time, and only if a token goes there; it is built again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ders_core.codecs import Parts
from ders_core.upcycle.delta import Delta, MatrixDelta, ProductDelta, times
from ders_core.upcycle.experts import ExpertLinear, Routes, sum_tokens


class SharedLinear(ExpertLinear):
    """base: `[out, in]`; bias: `[N, out]` or None."""

    base: nn.Parameter

    def __init__(
        self, base: torch.Tensor, bias: torch.Tensor | None, deltas: Sequence[Delta]
    ) -> None:
        super().__init__()
        self.base = nn.Parameter(base)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.deltas = nn.ModuleList(deltas)

    def matrix(self, expert: int) -> torch.Tensor:
        weight: torch.Tensor = self.base
        for delta in self.sets():
            weight = weight + delta.matrix(expert)
        return weight

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        """Of the one set of deltas that a new MoE has."""
        (delta,) = self.sets()
        return delta.parts(expert, dtype)

    def products(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        factors, matrices = self._factors(), self._matrices()
        if not matrices:
            rows = times(tokens, self.base).index_select(0, routes.tokens)
        else:
            rows = self._built(tokens.index_select(0, routes.tokens), routes, matrices)
        if factors:
            chosen = tokens.index_select(0, routes.tokens)
            for delta in factors:
                rows = rows + delta(chosen, routes.counts)
        return rows

    def sums(
        self, rows: torch.Tensor, routes: Routes
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        matrices = self._matrices()
        together = apart = None
        if matrices:
            apart = self._built(rows, routes, matrices)
        else:
            together = times(sum_tokens(rows, routes), self.base)
        for delta in self._factors():
            product = delta(rows, routes.counts)
            apart = product if apart is None else apart + product
        return together, apart

    def _factors(self) -> list[ProductDelta]:
        return [factor for delta in self.sets() for factor in delta.as_products()]

    def _matrices(self) -> list[MatrixDelta]:
        return [matrix for delta in self.sets() for matrix in delta.as_matrices()]

    def _built(self, rows: torch.Tensor, routes: Routes, deltas: list[MatrixDelta]) -> torch.Tensor:
        """The product of each row with W_shared and the matrix deltas of its expert."""
        values = [delta.values for delta in deltas]
        product: torch.Tensor = _BuiltLinear.apply(rows, self.base, routes.counts, deltas, *values)
        return product


class _BuiltLinear(torch.autograd.Function):
    """x·(W_shared + Σ Δ_i)ᵀ, one expert's matrix in memory at a time, and none kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        base: torch.Tensor,
        counts: tuple[int, ...],
        deltas: list[MatrixDelta],
        *values: torch.Tensor,
    ) -> torch.Tensor:
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        ctx.counts, ctx.deltas, ctx.dtype = counts, deltas, dtype
        ctx.save_for_backward(rows, base)
        out = torch.empty(len(rows), base.shape[0], dtype=dtype, device=rows.device)
        with torch.autocast(kind, enabled=False):
            for _, span, weight in _built_matrices(base, counts, deltas, dtype):
                torch.mm(rows[span].to(dtype), weight.T, out=out[span])
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, base = ctx.saved_tensors
        counts, deltas, dtype = ctx.counts, ctx.deltas, ctx.dtype
        grad = grad.to(dtype)
        wants_rows, wants_base = ctx.needs_input_grad[:2]
        wants_values = ctx.needs_input_grad[4:]
        grad_rows = torch.empty_like(rows) if wants_rows else None
        grad_base = torch.zeros_like(base) if wants_base else None
        grad_values = [
            torch.zeros_like(delta.values) if wanted else None
            for delta, wanted in zip(deltas, wants_values, strict=True)
        ]
        with torch.autocast(rows.device.type, enabled=False):
            for expert, span, weight in _built_matrices(base, counts, deltas, dtype):
                if grad_rows is not None:
                    grad_rows[span] = (grad[span] @ weight).to(rows.dtype)
                if grad_base is None and not any(wants_values):
                    continue
                grad_weight = (grad[span].T @ rows[span].to(dtype)).float()  # [out, in]
                if grad_base is not None:
                    grad_base += grad_weight
                for delta, gradient in zip(deltas, grad_values, strict=True):
                    if gradient is not None:
                        gradient[expert] = delta.gradient(expert, grad_weight)
        return grad_rows, grad_base, None, None, *grad_values


def _built_matrices(
    base: torch.Tensor, counts: Sequence[int], deltas: Sequence[MatrixDelta], dtype: torch.dtype
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """(expert, its rows, its matrix `[out, in]`), in one buffer, for each expert with rows."""
    buffer = torch.empty_like(base, dtype=torch.float32)
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            buffer.copy_(base)
            for delta in deltas:
                delta.add_to(buffer, expert)
            yield expert, slice(begin, begin + count), buffer.to(dtype)
        begin += count

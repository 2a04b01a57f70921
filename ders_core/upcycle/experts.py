"""One projection of all experts: W_i = W_shared + Σ F(Δ_i), computed without the N whole matrices.

Rows of a batch come sorted by expert. `spread` is for gate and up: what every chosen expert makes
of a token. `gather` is for down: what they make together, Σ_k w_k·E_k(h_k). With low-rank deltas
alone the product with W_shared is the same for all of a token's experts, so it is made once a
token (`W x` for spread, `W·Σ_k w_k h_k` for gather). With sparse deltas one expert's matrix is
built at a time, and only if a token goes there; it is built again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)


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


class LowRankDelta(nn.Module):
    """Δ_i = L_i·R_i: `left` `[N, out, rank]`, zero at the start; `right` `[N, rank, in]`."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    def forward(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """rows: `[rows, in]`, sorted by expert; `[rows, out]`."""
        pieces = zip(rows.split(list(counts)), self.left.unbind(), self.right.unbind(), strict=True)
        return torch.cat([_times(_times(own, right), left) for own, left, right in pieces])


class SparseDelta(nn.Module):
    """Δ_i with `values` `[N, count]` at flat `positions` int32 `[N, count]`, zero elsewhere."""

    positions: torch.Tensor

    def __init__(self, values: torch.Tensor, positions: torch.Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("positions", positions)
        self.probe: int | None = None
        """How many positions are looked for in the next backward pass, of each expert."""
        self.found: dict[int, torch.Tensor] = {}
        """Expert -> the positions that it will have: where its largest values are, and where its
        gradient was largest beside."""

    def look(self, expert: int, gradient: torch.Tensor) -> None:
        """Note where the gradient `[out, in]` of an expert's whole weight is largest."""
        if self.probe is None:
            return
        largest = self.values.detach()[expert].abs().topk(self.values.shape[1] - self.probe)
        kept = self.positions[expert].index_select(0, largest.indices).long()
        scores = gradient.abs().flatten().index_fill_(0, kept, -1.0)
        self.found[expert] = torch.cat([kept, scores.topk(self.probe).indices]).sort().values

    @torch.no_grad()
    def renew(self, size: int, states: Sequence[torch.Tensor]) -> None:
        """Take the positions that were found. size: of a matrix. states: `[N, count]` that go with
        the values, such as an optimizer's moments. What comes anew is zero; every process of a
        distributed training takes the first one's positions."""
        for expert in range(len(self.values)):
            old = self.positions[expert].long()
            new = self.found.get(expert, old)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(new, 0)
            flat = torch.zeros(size, dtype=self.values.dtype, device=new.device)
            for kept in (self.values.data, *states):
                flat.zero_().index_copy_(0, old, kept[expert].to(flat.dtype))
                kept[expert] = flat.index_select(0, new)
            self.positions[expert] = new.to(torch.int32)
        self.found, self.probe = {}, None

    @torch.no_grad()
    def add_to(self, weight: torch.Tensor, expert: int) -> None:
        """weight: `[out, in]` float32, contiguous."""
        own = self.values[expert].detach().to(weight.dtype)
        weight.view(-1).index_add_(0, self.positions[expert], own)


class ExpertLinear(nn.Module):
    """One projection `[out, in]` of N experts: `base` and deltas, or (vanilla) `whole`
    `[N, out, in]`; each expert has its own `bias` `[N, out]` where the dense layer has one."""

    base: nn.Parameter | None
    whole: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        base: torch.Tensor | None,
        whole: torch.Tensor | None,
        bias: torch.Tensor | None,
        deltas: Sequence[LowRankDelta | SparseDelta] = (),
    ) -> None:
        super().__init__()
        for name, tensor in (("base", base), ("whole", whole), ("bias", bias)):
            parameter = None if tensor is None else nn.Parameter(tensor)
            self.register_parameter(name, parameter)
        self.deltas = nn.ModuleList(deltas)

    @property
    def sparse(self) -> list[SparseDelta]:
        return [delta for delta in self.deltas if isinstance(delta, SparseDelta)]

    @property
    def lowrank(self) -> list[LowRankDelta]:
        return [delta for delta in self.deltas if isinstance(delta, LowRankDelta)]

    def spread(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        """tokens: `[tokens, in]`; `[rows, out]`."""
        if self.base is not None and not self.sparse:
            rows = _times(tokens, self.base).index_select(0, routes.tokens)
        else:
            rows = self._apart(tokens.index_select(0, routes.tokens), routes)
        if self.lowrank:
            chosen = tokens.index_select(0, routes.tokens)
            for delta in self.lowrank:
                rows = rows + delta(chosen, routes.counts)
        return self._biased(rows, routes)

    def gather(self, rows: torch.Tensor, weights: torch.Tensor, routes: Routes) -> torch.Tensor:
        """rows: `[rows, in]`; weights: `[rows]`; `[tokens, out]`."""
        weighed = rows * weights.unsqueeze(1).to(rows.dtype)
        if self.base is not None and not self.sparse:
            together = _times(_summed(weighed, routes), self.base)
            apart = None
        else:
            together, apart = None, self._apart(weighed, routes)
        for delta in self.lowrank:
            own = delta(weighed, routes.counts)
            apart = own if apart is None else apart + own
        if self.bias is not None:
            bias = self.bias.index_select(0, routes.experts) * weights.unsqueeze(1)
            apart = bias if apart is None else apart + bias
        if apart is None:
            assert together is not None
            return together
        summed = _summed(apart, routes)
        return summed if together is None else together + summed.to(together.dtype)

    def _apart(self, rows: torch.Tensor, routes: Routes) -> torch.Tensor:
        """The product of each row with the matrix of its expert, without low-rank deltas."""
        if self.whole is not None:
            pieces = zip(rows.split(list(routes.counts)), self.whole.unbind(), strict=True)
            return torch.cat([_times(own, weight) for own, weight in pieces])
        sparse = self.sparse
        values = [delta.values for delta in sparse]
        found: torch.Tensor = _SparseLinear.apply(rows, self.base, routes.counts, sparse, *values)
        return found

    def _biased(self, rows: torch.Tensor, routes: Routes) -> torch.Tensor:
        if self.bias is None:
            return rows
        return rows + self.bias.index_select(0, routes.experts).to(rows.dtype)


def _times(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x·Wᵀ in the dtype of x: what is trained is float32 whatever the others are."""
    return F.linear(rows, weight.to(rows.dtype))


def _summed(rows: torch.Tensor, routes: Routes) -> torch.Tensor:
    """The sum of each token's rows: `[tokens, width]`."""
    zeros = torch.zeros(routes.size, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return zeros.index_add(0, routes.tokens, rows)


class _SparseLinear(torch.autograd.Function):
    """x·(W_shared + Σ Δ_i)ᵀ, one expert's matrix in memory at a time, and none kept."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        base: torch.Tensor,
        counts: tuple[int, ...],
        deltas: list[SparseDelta],
        *values: torch.Tensor,
    ) -> torch.Tensor:
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        ctx.counts, ctx.deltas, ctx.dtype = counts, deltas, dtype
        ctx.save_for_backward(rows, base)
        out = torch.empty(len(rows), base.shape[0], dtype=dtype, device=rows.device)
        with torch.autocast(kind, enabled=False):
            for _, span, weight in _matrices(base, counts, deltas, dtype):
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
            for expert, span, weight in _matrices(base, counts, deltas, dtype):
                if grad_rows is not None:
                    grad_rows[span] = (grad[span] @ weight).to(rows.dtype)
                if grad_base is None and not any(wants_values):
                    continue
                whole = (grad[span].T @ rows[span].to(dtype)).float()  # [out, in]
                if grad_base is not None:
                    grad_base += whole
                for delta, own in zip(deltas, grad_values, strict=True):
                    if own is not None:
                        places = delta.positions[expert]
                        own[expert] = whole.view(-1).index_select(0, places)
                        delta.look(expert, whole)
        return grad_rows, grad_base, None, None, *grad_values


def _matrices(
    base: torch.Tensor, counts: Sequence[int], deltas: Sequence[SparseDelta], dtype: torch.dtype
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

"""Deltas at a few positions, drawn once or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ders_core.codecs import Parts
from ders_core.codecs.coding.positions import encode_shortest
from ders_core.upcycle.delta import MatrixDelta, Moments, stored
from ders_core.upcycle.forms.form import Shape
from ders_core.upcycle.forms.sparse import Renewal


class SparseDelta(MatrixDelta):
    """Δ_i with `values` `[N, count]` at flat `positions` int32 `[N, count]`, zero elsewhere. The
    positions are drawn from the experts' seeds, so that they are not stored."""

    positions: torch.Tensor

    def __init__(self, values: torch.Tensor, positions: torch.Tensor, shape: Shape) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("positions", positions)
        self.shape = shape

    def matrix(self, expert: int) -> torch.Tensor:
        zeros = self.values.new_zeros(math.prod(self.shape))
        flat = zeros.index_put((self.positions[expert].long(),), self.values[expert])
        return flat.view(self.shape)

    @torch.no_grad()
    def add_to(self, weight: torch.Tensor, expert: int) -> None:
        values = self.values[expert].detach().to(weight.dtype)
        weight.view(-1).index_add_(0, self.positions[expert], values)

    def gradient(self, expert: int, weight_gradient: torch.Tensor) -> torch.Tensor:
        return weight_gradient.view(-1).index_select(0, self.positions[expert])

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        return {"values": stored(self.values[expert], dtype)}


class LearnedDelta(SparseDelta):
    """Sparse deltas whose positions are stored; with a `renewal` they are learned as well."""

    def __init__(
        self,
        values: torch.Tensor,
        positions: torch.Tensor,
        shape: Shape,
        renewal: Renewal | None = None,
    ) -> None:
        super().__init__(values, positions, shape)
        self.renewal = renewal
        self.probe: int | None = None
        """How many positions are looked for in the next backward pass, of each expert."""
        self.candidates: dict[int, torch.Tensor] = {}
        """Expert -> the positions that it will have: where its largest values are, and where its
        gradient was largest elsewhere."""

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        positions = self.positions[expert].long().cpu()
        order = positions.argsort()
        return {
            "values": stored(self.values[expert].cpu()[order], dtype),
            "positions": encode_shortest(positions[order], math.prod(self.shape)),
        }

    def gradient(self, expert: int, weight_gradient: torch.Tensor) -> torch.Tensor:
        self._look(expert, weight_gradient)
        return super().gradient(expert, weight_gradient)

    def before_step(self, step: int, steps: int) -> None:
        if self.renewal is not None:
            share = self.renewal.share_at(step, steps)
            self.probe = round(share * self.values.shape[1]) or None

    def after_step(self, moments: Moments) -> None:
        if self.probe is not None:
            self.renew(moments(self.values))

    def _look(self, expert: int, gradient: torch.Tensor) -> None:
        """Note where the gradient `[out, in]` of an expert's whole weight is largest."""
        if self.probe is None:
            return
        largest = self.values.detach()[expert].abs().topk(self.values.shape[1] - self.probe)
        kept = self.positions[expert].index_select(0, largest.indices).long()
        scores = gradient.abs().flatten().index_fill_(0, kept, -1.0)
        self.candidates[expert] = torch.cat([kept, scores.topk(self.probe).indices]).sort().values

    @torch.no_grad()
    def renew(self, moments: Sequence[torch.Tensor]) -> None:
        """Take the positions that were looked for. moments: `[N, count]` that go with the values,
        such as an optimizer's. A new position has the value and moments 0; every process of a
        distributed training takes the first one's positions."""
        for expert in range(len(self.values)):
            old = self.positions[expert].long()
            new = self.candidates.get(expert, old)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(new, 0)
            flat = torch.zeros(math.prod(self.shape), dtype=self.values.dtype, device=new.device)
            for rows in (self.values.data, *moments):
                flat.zero_().index_copy_(0, old, rows[expert].to(flat.dtype))
                rows[expert] = flat.index_select(0, new)
            self.positions[expert] = new.to(torch.int32)
        self.candidates, self.probe = {}, None

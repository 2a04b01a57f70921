"""The FFN of an upcycled layer: a router, and experts on one base."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ders_core.upcycle.experts import ExpertLinear, Routes

UNIVERSAL_SHARE = 2 / 3
"""What down is multiplied with if there is a universal expert. That one starts with the weight
σ(0) = 1/2 and the others together have 1, so that with this factor all of them begin as the dense
FFN: (1/2 + 1)·2/3 = 1."""


class UpcycledFFN(nn.Module):
    """y = Σ_k w_k·E_k(x) over the top-k of softmax(router(x)), their weights normalised to sum 1;
    a universal expert, the last one, adds σ(gate(x))·U(x) (as Qwen2-MoE has it).

    With top-1 the weight is always 1; the router then learns through p/p̂, where p̂ is p without its
    gradient (a straight-through estimate).
    balance: of the last forward pass, N·Σ_e f_e·P_e (Switch, arXiv 2101.03961, eq. 4-6), where f_e
    is expert e's share of the choices. loads: choices of each expert since they were last cleared.
    """

    loads: torch.Tensor

    def __init__(
        self,
        projections: dict[str, ExpertLinear],
        router: torch.Tensor,
        *,
        top_k: int,
        universal: bool,
        activation: Callable[[torch.Tensor], torch.Tensor],
        dropout: float,
    ) -> None:
        """router: `[experts, hidden]`."""
        super().__init__()
        self.gate, self.up, self.down = (projections.get(name) for name in ("gate", "up", "down"))
        self.router = nn.Parameter(router)
        hidden = router.shape[1]
        self.universal = nn.Parameter(router.new_zeros(1, hidden)) if universal else None
        self.top_k, self.activation = top_k, activation
        self.dropout = nn.Dropout(dropout)
        self.balance = torch.zeros(())
        loads = torch.zeros(len(router), dtype=torch.int64, device=router.device)
        self.register_buffer("loads", loads, persistent=False)

    @property
    def projections(self) -> dict[str, ExpertLinear]:
        """By name; without a gate where the family has none."""
        named = {"gate": self.gate, "up": self.up, "down": self.down}
        return {name: linear for name, linear in named.items() if linear is not None}

    def train_router(self) -> None:
        """Give the router, and the universal expert's gate, a gradient, in float32."""
        for parameter in (self.router, self.universal):
            if parameter is not None:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]`, in and out."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        routes, weights = self._route(tokens)
        assert self.up is not None
        assert self.down is not None
        rows = self.up.spread(tokens, routes)
        if self.gate is None:
            rows = self.activation(rows)
        else:
            rows = self.activation(self.gate.spread(tokens, routes)) * rows
        mixed = self.down.gather(rows, weights, routes)
        out: torch.Tensor = self.dropout(mixed.to(hidden.dtype).view(hidden.shape))
        return out

    def _route(self, tokens: torch.Tensor) -> tuple[Routes, torch.Tensor]:
        """Where each token goes, and the weights `[rows]` float32."""
        experts, size = len(self.router), len(tokens)
        chances = nn.functional.linear(tokens, self.router.to(tokens.dtype)).float().softmax(-1)
        top, chosen = chances.topk(self.top_k)
        divisor = top.sum(-1, keepdim=True) if self.top_k > 1 else top.detach()
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        loads = flat.bincount(minlength=experts)
        self._note(chances, loads)
        sorted_tokens, sorted_experts = order // self.top_k, flat.index_select(0, order)
        weights = (top / divisor).flatten().index_select(0, order)
        counts = loads.tolist()
        if self.universal is not None:
            everyone = torch.arange(size, device=tokens.device)
            share = nn.functional.linear(tokens, self.universal.to(tokens.dtype)).float().sigmoid()
            sorted_tokens = torch.cat([sorted_tokens, everyone])
            sorted_experts = torch.cat([sorted_experts, torch.full_like(everyone, experts)])
            weights = torch.cat([weights, share.flatten()])
            counts.append(size)
        return Routes(sorted_tokens, sorted_experts, tuple(counts), size), weights

    def _note(self, chances: torch.Tensor, loads: torch.Tensor) -> None:
        shares = loads / loads.sum().clamp_min(1)
        self.balance = len(self.router) * (shares * chances.mean(0)).sum()
        if self.training:
            self.loads += loads


Blocks = Mapping[int, UpcycledFFN]
"""Layer -> its block."""


def expert_linears(blocks: Blocks) -> list[tuple[int, str, ExpertLinear]]:
    """(layer, projection, its experts)"""
    return [
        (layer, name, linear)
        for layer, block in blocks.items()
        for name, linear in block.projections.items()
    ]

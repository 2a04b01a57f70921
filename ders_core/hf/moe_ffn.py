"""A mixture of experts in the place of a dense model's FFN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ders_core.checkpoint.dense import DenseFFN, dense_ffns
from ders_core.files.spec import TensorSpec

_recorded: ContextVar[list[torch.Tensor] | None] = ContextVar("router_logits", default=None)
"""The list that routers append their logits to; one for each thread."""


@contextmanager
def recorded_routers() -> Iterator[list[torch.Tensor]]:
    """Router logits of the forward passes in the block: `[tokens, N]`, layer by layer."""
    logits: list[torch.Tensor] = []
    token = _recorded.set(logits)
    try:
        yield logits
    finally:
        _recorded.reset(token)


@dataclass(frozen=True)
class FFNShape:
    """A dense FFN: down(act(gate x) · up x), or down(act(up x)) if it is not gated.

    hidden, inner: d and d_h. dropout: probability, on the FFN's output.
    """

    hidden: int
    inner: int
    gated: bool
    biased: bool
    activation: str
    dropout: float

    @classmethod
    def of(cls, ffn: DenseFFN, module: nn.Module, config: PreTrainedConfig) -> FFNShape:
        inner, hidden = ffn.weights["up"].shape
        return cls(
            hidden=hidden,
            inner=inner,
            gated="gate" in ffn.weights,
            biased=any(name.endswith(".bias") for name, _ in module.named_parameters()),
            activation=getattr(config, "hidden_act", None) or config.activation_function,
            dropout=next(
                (part.p for part in module.modules() if isinstance(part, nn.Dropout)), 0.0
            ),
        )


def model_ffns(model: nn.Module) -> list[DenseFFN]:
    """Every FFN of a dense model in memory, by the names of its parameters."""
    return dense_ffns({name: TensorSpec.like(weight) for name, weight in model.named_parameters()})


class Expert(nn.Module):
    """One FFN, its weights `[out, in]` as torch's Linear has them."""

    def __init__(self, form: FFNShape) -> None:
        super().__init__()
        self.gate_proj = (
            nn.Linear(form.hidden, form.inner, bias=form.biased) if form.gated else None
        )
        self.up_proj = nn.Linear(form.hidden, form.inner, bias=form.biased)
        self.down_proj = nn.Linear(form.inner, form.hidden, bias=form.biased)
        self.act = ACT2FN[form.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[tokens, d]` -> `[tokens, d]`."""
        up = self.up_proj(x)
        inner = self.act(up) if self.gate_proj is None else self.act(self.gate_proj(x)) * up
        outer: torch.Tensor = self.down_proj(inner)
        return outer


class Experts(nn.ModuleList):
    """The experts of a layer; each computes only the tokens that chose it.

    `ders_core.runtime` takes the place of the weights: `forms.linears` knows this class.
    """

    def __init__(self, form: FFNShape, experts: int) -> None:
        super().__init__(Expert(form) for _ in range(experts))
        self.num_experts = experts
        self.has_gate, self.has_bias = form.gated, form.biased

    def _each(self) -> list[Expert]:
        """The experts alone: what takes the place of their weights is a module here too."""
        return [module for module in self if isinstance(module, Expert)]

    @property
    def act_fn(self) -> nn.Module:
        """Of every expert."""
        activation: nn.Module = self._each()[0].act
        return activation

    def projections(self) -> dict[str, list[nn.Linear]]:
        """What holds the weights, and the biases, of each projection, expert by expert."""
        experts = self._each()
        held = {
            "gate": [expert.gate_proj for expert in experts if expert.gate_proj is not None],
            "up": [expert.up_proj for expert in experts],
            "down": [expert.down_proj for expert in experts],
        }
        return {name: linears for name, linears in held.items() if linears}

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ_k w_k E_k(x). x: `[tokens, d]`; chosen: int64 `[tokens, k]`; weights: of the same."""
        order = chosen.flatten().argsort(stable=True)  # [tokens · k], expert after expert
        counts = chosen.flatten().bincount(minlength=len(self)).tolist()
        parts = x[order // chosen.shape[1]].split(counts)
        outputs = torch.cat(
            [expert(part) for expert, part in zip(self, parts, strict=True) if len(part)]
        )
        outputs = outputs[order.argsort()].unflatten(0, chosen.shape)  # [tokens, k, d]
        mixed: torch.Tensor = (weights.to(outputs.dtype)[..., None] * outputs).sum(1)
        return mixed


class MoeFFN(nn.Module):
    """y = Σ_k w_k E_k(x) over the top-k of p = softmax(gate x), with w = p / Σ p over these; with a
    universal expert U, + sigmoid(shared_expert_gate x) · U(x)."""

    def __init__(self, form: FFNShape, experts: int, top_k: int, universal: bool) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(form.hidden, experts, bias=False)
        self.experts = Experts(form, experts)
        self.shared_expert = Expert(form) if universal else None
        self.shared_expert_gate = nn.Linear(form.hidden, 1, bias=False) if universal else None
        self.dropout = nn.Dropout(form.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, window, d]` -> the same; each expert computes only the tokens routed to it."""
        x = hidden_states.flatten(0, -2)  # [tokens, d]
        logits = self.gate(x)  # [tokens, N]
        record = _recorded.get()
        if record is not None:
            record.append(logits)
        weights, chosen = logits.softmax(-1, dtype=torch.float32).topk(self.top_k)  # [tokens, k]
        weights = weights / weights.sum(-1, keepdim=True)
        y = self.experts(x, chosen, weights)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            y = y + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)
        dropped: torch.Tensor = self.dropout(y)
        return dropped.view_as(hidden_states)

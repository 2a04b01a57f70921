"""NLLB-MoE: experts of two linear layers with biases, whose outputs are scaled or dropped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from ders_core.runtime.forms.form import (
    EXPERTS,
    INNER,
    TOKENS,
    WIDTH,
    Compute,
    register,
    tried_tokens,
)
from ders_core.runtime.forms.linears import NumberedForm


@register
class NllbForm(NumberedForm):
    name: ClassVar[str] = "NllbMoeExperts"
    linears: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    @property
    def has_post_expert_norm(self) -> bool:
        """Whether outputs of experts are dropped at random, as they are in training."""
        return bool(self.module.training and self.module.moe_token_dropout > 0)

    def post_expert_norm(self, outer: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = self.module.token_dropout(outer)
        return dropped

    def forward(
        self,
        compute: Compute,
        hidden_states: torch.Tensor,
        router_mask: torch.Tensor,
        router_probs: torch.Tensor,
    ) -> torch.Tensor:
        """router_mask: `[tokens, experts]`, whose entries transformers 5.23 takes for numbers of
        experts."""
        kept = 1.0 if self.module.training else 1 - self.module.moe_token_dropout
        return compute(hidden_states, router_mask, router_probs * kept)

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            num_experts=EXPERTS,
            d_model=WIDTH,
            activation_dropout=0.0,
            activation_function="relu",
            moe_token_dropout=0.25,
        )
        small: nn.Module = type(self.module)(config, INNER)
        return small.eval()

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        shape = TOKENS, EXPERTS
        mask = torch.randint(2, shape, generator=random)
        return tried_tokens(random), mask, torch.rand(shape, generator=random)

"""Switch Transformers: experts of two linear layers, called with a mask of one expert a token."""

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
class SwitchForm(NumberedForm):
    name: ClassVar[str] = "SwitchTransformersExperts"
    linears: ClassVar[tuple[str, str]] = ("wi", "wo")

    def forward(
        self,
        compute: Compute,
        hidden_states: torch.Tensor,
        selected_experts: torch.Tensor,
        routing_weights: torch.Tensor,
    ) -> torch.Tensor:
        """selected_experts: `[tokens, 1, experts]`, of zeros alone where an expert has no room."""
        chosen = torch.where(selected_experts.any(-1), selected_experts.argmax(-1), -1)
        return compute(hidden_states, chosen, routing_weights)

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            num_experts=EXPERTS,
            d_model=WIDTH,
            d_ff=INNER,
            dropout_rate=0.0,
            dense_act_fn="relu",
        )
        small: nn.Module = type(self.module)(config)
        return small

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        """One token is given to no expert."""
        numbers = torch.randint(EXPERTS, (TOKENS, 1), generator=random)
        mask = nn.functional.one_hot(numbers, EXPERTS)
        mask[1] = 0
        return tried_tokens(random), mask, torch.rand(TOKENS, 1, generator=random)

"""Llama 4: every expert is called with a row for each token, of zeros where it was not chosen."""

from __future__ import annotations

from collections.abc import Mapping
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
    NamedForm,
    register,
    tried_tokens,
)


@register
class Llama4Form(NamedForm):
    name: ClassVar[str] = "Llama4TextExperts"

    def matrices(self) -> Mapping[str, torch.Tensor]:
        gate, up = self.module.gate_up_proj.mT.chunk(2, 1)
        return {"gate": gate, "up": up, "down": self.module.down_proj.mT}

    def forward(self, compute: Compute, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: `[experts · tokens, d]`, expert after expert, as the router scaled them.
        Only rows that are not zero are computed: without biases, an expert makes zeros of zeros."""
        (given,) = (hidden_states != 0).any(-1).nonzero(as_tuple=True)
        experts = given // (len(hidden_states) // self.num_experts)
        rows = hidden_states[given]
        outputs = compute(rows, experts.unsqueeze(1), rows.new_ones(len(rows), 1))
        return torch.zeros_like(hidden_states).index_copy(0, given, outputs)

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            num_local_experts=EXPERTS,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            hidden_act="silu",
        )
        small: nn.Module = type(self.module)(config)
        return small

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        chances = torch.rand(EXPERTS * TOKENS, 1, generator=random)
        rows = tried_tokens(random).repeat(EXPERTS, 1)
        return (torch.where(chances < 0.5, chances * rows, 0.0),)

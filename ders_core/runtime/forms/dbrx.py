"""DBRX: experts along the rows of matrices, called with texts and not with tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from ders_core.runtime.forms.form import (
    EXPERTS,
    INNER,
    WIDTH,
    Compute,
    NamedForm,
    register,
    tried_choice,
    tried_tokens,
)


@register
class DbrxForm(NamedForm):
    name: ClassVar[str] = "DbrxExperts"

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        return ((self.module.mlp, name) for name in ("w1", "v1", "w2"))

    def matrices(self) -> Mapping[str, torch.Tensor]:
        held = self.module.mlp
        gate, up, down = (
            weight.unflatten(0, (self.num_experts, -1)) for weight in (held.w1, held.v1, held.w2)
        )
        return {"gate": gate, "up": up, "down": down.mT}

    def act_fn(self, inner: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.module.mlp.activation_fn(inner)
        return activated

    def forward(
        self,
        compute: Compute,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """hidden_states: `[texts, tokens, d]`; all else is of tokens."""
        mixed = compute(hidden_states.flatten(0, -2), top_k_index, top_k_weights)
        return mixed.view(len(hidden_states), -1, mixed.shape[1])

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            moe_num_experts=EXPERTS,
            hidden_size=WIDTH,
            ffn_hidden_size=INNER,
            ffn_act_fn={"name": "silu"},
        )
        small: nn.Module = type(self.module)(config)
        return small

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        return (tried_tokens(random).unsqueeze(0), *tried_choice(random))

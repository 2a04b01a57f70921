"""LongCat Flash: the last numbers are of experts that give back what they are given."""

from __future__ import annotations

from collections.abc import Mapping
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
)


@register
class LongcatForm(NamedForm):
    name: ClassVar[str] = "LongcatFlashExperts"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.surplus = module.zero_expert_num

    @property
    def num_experts(self) -> int:
        count: int = self.module.num_routed_experts
        return count

    def matrices(self) -> Mapping[str, torch.Tensor]:
        gate, up = self.module.gate_up_proj[: self.num_experts].chunk(2, 1)
        return {"gate": gate, "up": up, "down": self.module.down_proj}

    def forward(
        self,
        compute: Compute,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """`compute` leaves out numbers that no expert has."""
        mixed = compute(hidden_states, top_k_index, top_k_weights)
        passed = torch.where(top_k_index >= self.num_experts, top_k_weights, 0.0).sum(-1)
        return mixed + (hidden_states * passed.unsqueeze(1)).to(mixed.dtype)

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            n_routed_experts=EXPERTS - 1,
            zero_expert_num=1,
            hidden_size=WIDTH,
            expert_ffn_hidden_size=INNER,
            hidden_act="silu",
        )
        small: nn.Module = type(self.module)(config)
        return small

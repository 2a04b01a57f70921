"""JetMoe: a block whose two products are taken of rows that are sorted by expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from ders_core.runtime.forms.form import (
    CHOSEN,
    EXPERTS,
    INNER,
    WIDTH,
    Compute,
    NamedForm,
    register,
    tried_tokens,
)


@register
class JetMoeForm(NamedForm):
    """Of the whole block: its products alone do not know which rows are of one token."""

    name: ClassVar[str] = "JetMoeMoE"

    @property
    def num_experts(self) -> int:
        count: int = self.module.input_linear.num_experts
        return count

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        held = self.module.input_linear, self.module.output_linear
        return ((linear, "weight") for linear in held)

    def matrices(self) -> Mapping[str, torch.Tensor]:
        gate, up = self.module.input_linear.weight.chunk(2, 1)
        return {"gate": gate, "up": up, "down": self.module.output_linear.weight}

    def act_fn(self, inner: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.module.activation(inner)
        return activated

    def forward(self, compute: Compute, layer_input: torch.Tensor) -> torch.Tensor:
        """layer_input: `[texts, tokens, d]`."""
        x = layer_input.flatten(0, -2)
        places, _, gates, sizes, _ = self.module.router(x)
        numbers = torch.arange(self.num_experts, device=x.device)
        counts = torch.tensor(sizes, device=x.device)
        chosen = torch.empty_like(places)
        chosen[places] = numbers.repeat_interleave(counts)
        weights = torch.empty_like(gates).index_copy(0, places, gates)
        shape = len(x), -1
        mixed = compute(x, chosen.view(shape), weights.view(shape))
        output: torch.Tensor = mixed.view(layer_input.shape) + self.module.bias
        return output

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            hidden_size=WIDTH,
            intermediate_size=INNER,
            activation_function="silu",
            num_local_experts=EXPERTS,
            num_experts_per_tok=CHOSEN,
        )
        small: nn.Module = type(self.module)(config)
        return small

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        return (tried_tokens(random).unsqueeze(0),)

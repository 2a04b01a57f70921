"""Experts as transformers' `use_experts_implementation` says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ders_core.runtime.forms.form import (
    EXPERTS,
    INNER,
    ExpertsForm,
    tried_choice,
    tried_tokens,
)


class DecoratedForm(ExpertsForm):
    """Of any class with that decorator."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.has_gate, self.has_bias = module.has_gate, module.has_bias
        self.is_concatenated = module.is_concatenated
        self._first = "gate_up_proj" if self.has_gate else "up_proj"

    @classmethod
    def is_of(cls, module: nn.Module) -> bool:
        return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        return ((self.module, name) for name in (self._first, "down_proj"))

    def matrices(self) -> Mapping[str, torch.Tensor]:
        """Nothing where the class holds them otherwise."""
        first, down = (getattr(self.module, name, None) for name in (self._first, "down_proj"))
        if first is None or down is None or not first.dim() == down.dim() == 3:
            return {}
        if self.module.is_transposed:
            first, down = first.mT, down.mT
        if not self.has_gate:
            return {"up": first, "down": down}
        gate, up = first.chunk(2, 1) if self.is_concatenated else (first[:, ::2], first[:, 1::2])
        return {"gate": gate, "up": up, "down": down}

    def apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.module._apply_gate(inner)
        return gated

    def first_biases(self) -> torch.Tensor:
        biases: torch.Tensor = getattr(self.module, f"{self._first}_bias")
        return biases

    def down_biases(self) -> torch.Tensor:
        biases: torch.Tensor = self.module.down_proj_bias
        return biases

    @property
    def has_post_expert_norm(self) -> bool:
        return bool(self.module.has_post_expert_norm)

    def post_expert_norm(self, outer: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.module.post_expert_norm(outer)
        return normed

    @property
    def own_forward(self) -> Callable[..., Any] | None:
        """Without the decorator's choice of an implementation."""
        return getattr(type(self.module).forward, "__wrapped__", None)

    def small(self) -> nn.Module:
        """Of the module's own width, which norms have too; buffers are ones."""
        width = self.matrices()["down"].shape[1]
        inner = 2 * INNER if self.has_gate else INNER
        parameters = {}
        for name, shape in ((self._first, (inner, width)), ("down_proj", (width, INNER))):
            turned = shape[::-1] if self.module.is_transposed else shape
            parameters[name] = nn.Parameter(torch.empty(EXPERTS, *turned))
            if self.has_bias:
                parameters[f"{name}_bias"] = nn.Parameter(torch.empty(EXPERTS, shape[0]))
        small: Any = copy.copy(self.module)
        small._parameters = parameters
        small._buffers = {
            name: None if buffer is None else torch.ones_like(buffer, device="cpu")
            for name, buffer in self.module._buffers.items()
        }
        small._modules = {
            name: child if child is None else _in_memory(child)
            for name, child in self.module._modules.items()
        }
        small.num_experts = EXPERTS
        return small  # type: ignore[no-any-return]

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        width = self.matrices()["down"].shape[1]
        return (tried_tokens(random, width), *tried_choice(random))


def _in_memory(child: nn.Module) -> nn.Module:
    """A copy of what may be on `meta`; buffers are ones."""
    copied = copy.deepcopy(child).to_empty(device="cpu").float()
    for buffer in copied.buffers():
        buffer.fill_(1)
    return copied

"""Step 3.7: as transformers' common form, but without its decorator; gate and up are clamped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import nn

from ders_core.runtime.forms.form import (
    EXPERTS,
    INNER,
    WIDTH,
    NamedForm,
    register,
)


@register
class Step3p7Form(NamedForm):
    name: ClassVar[str] = "Step3p7Experts"

    def apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.module._apply_gate(inner)
        return gated

    def small(self) -> nn.Module:
        config = SimpleNamespace(
            num_local_experts=EXPERTS,
            hidden_size=WIDTH,
            moe_intermediate_size=INNER,
            hidden_act="silu",
        )
        small: nn.Module = type(self.module)(config, swiglu_limit=0.5)
        return small

"""What stands between the first and the last product of an expert, for many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def activated(
    owner: Any, experts: torch.Tensor, inner: torch.Tensor, widths: Sequence[int]
) -> torch.Tensor:
    """What the down projection is given: `[pairs, inner]` in float32.

    owner: the module, which has the activation and the biases. experts: int64 `[pairs]`, all of
    which it has. inner: products with gate and up, side by side, as wide as `widths` says.
    """
    if not owner.has_gate:
        biased = inner + owner.up_proj_bias[experts].float() if owner.has_bias else inner
        hidden: torch.Tensor = owner.act_fn(biased)
        return hidden
    if not owner.is_concatenated:
        inner = torch.stack(inner.split(list(widths), 1), -1).flatten(1)
    if owner.has_bias:
        inner = inner + owner.gate_up_proj_bias[experts].float()
    gated: torch.Tensor = owner._apply_gate(inner)
    return gated

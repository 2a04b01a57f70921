"""Whether a class of transformers computes experts as `PackedExperts` does: it is tried."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ders_core.runtime.experts import PackedExperts
from ders_core.runtime.held import WholeGroup

TOKENS, EXPERTS, INNER = 5, 3, 4
"""Of the trial: few, since the model's own width is taken."""

TOLERANCE = 1e-4
"""Of the largest difference, as a share of the largest output; in float32."""


def computes_as_known(module: Any) -> bool:
    """Whether the class's own forward pass gives what `PackedExperts` gives, with random weights.

    module: holds experts as transformers' `use_experts_implementation` says, with its weights or
    without them (on `meta`); it stays as it is.
    """
    own = getattr(type(module).forward, "__wrapped__", None)
    if own is None:
        return False
    small, groups = _small(module)
    random = torch.Generator().manual_seed(0)
    width = groups["up"].shape[2]
    x = torch.randn(TOKENS, width, generator=random)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=random)[:2] for _ in range(TOKENS)])
    weights = torch.rand(TOKENS, 2, generator=random) + 0.1
    with torch.no_grad():
        try:
            expected = own(small, x, chosen, weights)
            got = PackedExperts(groups, None).compute(small, x, chosen, weights)
        except Exception:  # a class of any family may compute in any way
            return False
    largest = float(expected.abs().max())
    return float((got - expected).abs().max()) <= TOLERANCE * largest and largest > 0


def _small(module: Any) -> tuple[Any, dict[str, WholeGroup]]:
    """The module with few experts of few inner entries, and the same weights by projection."""
    random = torch.Generator().manual_seed(1)
    width = module.down_proj.shape[2 if module.is_transposed else 1]
    projections = ("gate", "up") if module.has_gate else ("up",)

    def drawn(*shape: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(*shape, generator=random) / shape[-1] ** 0.5
        return values

    small: Any = copy.copy(module)
    small._parameters, small._modules = {}, {}
    for name, child in module._modules.items():
        small._modules[name] = _filled(child) if child is not None else None
    small.num_experts = EXPERTS
    rows = {name: drawn(EXPERTS, INNER, width) for name in projections}
    down = drawn(EXPERTS, width, INNER)
    joined = _joined(small, [*rows.values()], 1)
    first = "gate_up_proj" if small.has_gate else "up_proj"
    values = {first: joined, "down_proj": down}
    if small.is_transposed:
        values = {name: value.mT.contiguous() for name, value in values.items()}
    if small.has_bias:
        biases = [drawn(EXPERTS, INNER) for _ in projections]
        values[f"{first}_bias"] = _joined(small, biases, 1)
        values["down_proj_bias"] = drawn(EXPERTS, width)
    for name, value in values.items():
        small._parameters[name] = nn.Parameter(value, requires_grad=False)
    groups = {name: WholeGroup(weights) for name, weights in (rows | {"down": down}).items()}
    return small, groups


def _joined(small: Any, parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Gate and up in one tensor, as the class arranges them."""
    if len(parts) == 1 or small.is_concatenated:
        return torch.cat(parts, axis)
    joined: torch.Tensor = torch.stack(parts, axis + 1).flatten(axis, axis + 1)
    return joined


def _filled(child: nn.Module) -> nn.Module:
    """A copy in memory, with ones for its parameters."""
    filled = copy.deepcopy(child).to_empty(device="cpu").float()
    for tensor in (*filled.parameters(), *filled.buffers()):
        tensor.data.fill_(1)
    return filled

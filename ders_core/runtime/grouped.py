"""Few or a moderate number of tokens through the experts of a layer on a GPU: all pairs at once.

One product with each base for all tokens, and one kernel a projection for all pairs of a token and
an expert. Nothing depends on values that only the GPU knows: no step waits for it, and CUDA graphs
can record them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ders_core.compute.grouped.blocks import PairBlocks
from ders_core.runtime.activation import activated
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.held import HeldGroup

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

MOST_PAIRS = 64
"""Of an expert on average, up to which kernels are taken: each block of 16 pairs decodes the matrix
again. Reckoned, not measured."""


class GroupedLayer:
    """form: of the layer's experts. groups: by projection, all with a `HeldGroup.grouped`."""

    def __init__(self, form: ExpertsForm, groups: Mapping[str, HeldGroup]) -> None:
        self._form = form
        self._down, self._down_deltas = groups["down"], _deltas(groups["down"])
        self._first = [groups[name] for name in ("gate", "up") if name in groups]
        self._first_deltas = [_deltas(group) for group in self._first]

    @classmethod
    def of(cls, form: ExpertsForm, groups: Mapping[str, HeldGroup]) -> GroupedLayer | None:
        """None where a group cannot be multiplied so."""
        return cls(form, groups) if all(group.grouped() for group in groups.values()) else None

    def takes(self, x: torch.Tensor, chosen: torch.Tensor, *others: Any) -> bool:
        """As of `RoutedLayer`."""
        if not 0 < chosen.numel() <= MOST_PAIRS * self._form.num_experts:
            return False
        is_tracked = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *others))
        return not (is_tracked or self._form.has_post_expert_norm or torch.compiler.is_compiling())

    def compute(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """As `PackedExperts.compute`, without gradients."""
        from ders_core.compute.grouped.calls import GroupedCall

        tokens, each = chosen.shape
        numbers = chosen.reshape(-1).long()
        inside = (numbers >= 0) & (numbers < self._form.num_experts)
        experts = torch.where(inside, numbers, 0)
        shares = torch.where(inside, weights.reshape(-1).float(), 0.0)
        blocks = PairBlocks.of(numbers, self._form.num_experts)
        taken = GroupedCall(x.detach().contiguous(), each, blocks)
        inner = torch.cat([_started(group, taken.x) for group in self._first], 1)
        inner, column = inner.repeat_interleave(each, 0, output_size=tokens * each), 0
        for group, deltas in zip(self._first, self._first_deltas, strict=True):
            deltas.add(taken, inner, column)
            column += group.shape[1]
        widths = [group.shape[1] for group in self._first]
        biases = self._form.first_biases()[experts].float() if self._form.has_bias else None
        hidden = activated(self._form, inner, widths, biases)
        summed = (hidden * shares.unsqueeze(1)).unflatten(0, (tokens, each)).sum(1)
        down, sums = self._down, hidden.new_zeros(len(hidden), self._down.shape[1])
        call = GroupedCall(hidden.to(x.dtype).contiguous(), 1, blocks, shares)
        self._down_deltas.add(call, sums, 0)
        if self._form.has_bias:
            sums += self._form.down_biases()[experts].float() * shares.unsqueeze(1)
        total: torch.Tensor = sums.unflatten(0, (tokens, each)).sum(1)
        return total.add_(_started(down, summed.to(x.dtype))).to(x.dtype)


def _started(group: HeldGroup, x: torch.Tensor) -> torch.Tensor:
    """Products with the base, float32 `[n, out]`; zeros where there is none."""
    if not group.bases:
        return x.new_zeros(len(x), group.shape[1], dtype=torch.float32)
    return group.base_product(0, x).float()


def _deltas(group: HeldGroup) -> GroupedProducts:
    deltas = group.grouped()
    assert deltas is not None
    return deltas

"""A few tokens through the experts of a layer on a CPU: all their pairs at once.

What a token costs here is Python's and torch's way to an operation, as long as matrices are small,
and bytes that are read, where they are large. So there is one product with each base for all
tokens, and one call of a compiled loop for all pairs of a token and an expert, which reads deltas
as they are packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ders_core.codecs.fitting.stored_products import StoredMatrix
from ders_core.codecs.routed import RoutedDeltas, Routes
from ders_core.runtime.activation import activated
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.held import HeldGroup


class RoutedLayer:
    """form: of the layer's experts. groups: by projection, all with a `HeldGroup.routed`."""

    def __init__(self, form: ExpertsForm, groups: Mapping[str, HeldGroup]) -> None:
        self._form = form
        self._down = _Projection.of(groups["down"])
        first = (groups[name] for name in ("gate", "up") if name in groups)
        self._first = [_Projection.of(group) for group in first]
        self._widths = [each.out for each in self._first]
        deltas = (self._down.deltas, *(each.deltas for each in self._first))
        self._most_pairs = min(each.most_pairs for each in deltas)

    @classmethod
    def of(cls, form: ExpertsForm, groups: Mapping[str, HeldGroup]) -> RoutedLayer | None:
        """None where a group cannot be multiplied so."""
        return cls(form, groups) if all(group.routed() for group in groups.values()) else None

    def takes(self, x: torch.Tensor, chosen: torch.Tensor, *others: Any) -> bool:
        """Whether this computes these tokens `[n, d]` and is quicker than to decode: they are few,
        no gradient is asked for, and nothing stands between an expert and the sum over experts."""
        pairs = chosen.numel()
        if not 0 < pairs <= self._most_pairs * min(pairs, self._form.num_experts):
            return False
        is_tracked = torch.is_grad_enabled() and any(each.requires_grad for each in (x, *others))
        return not (is_tracked or self._form.has_post_expert_norm or torch.compiler.is_compiling())

    def compute(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """As `PackedExperts.compute`, without gradients."""
        tokens, each = chosen.shape
        of_pair, pairs = _places(tokens, each)
        experts = chosen.reshape(-1).long()
        numbers, shares = experts.numpy(), weights.reshape(-1, 1).float()
        outside = (numbers < 0) | (numbers >= self._form.num_experts)
        if outside.any():
            numbers = np.where(outside, -1, numbers)
            experts = torch.from_numpy(np.where(outside, 0, numbers))
            shares = shares * torch.from_numpy(~outside).unsqueeze(1)
        inputs = x.detach().float().contiguous()
        inner = self._inner(inputs, of_pair, pairs, numbers)
        biases = self._form.first_biases()[experts].float() if self._form.has_bias else None
        hidden = activated(self._form, inner, self._widths, biases) * shares
        summed = hidden.unflatten(0, (tokens, each)).sum(1)
        total = torch.zeros(tokens, self._down.out)
        sums = total.numpy()
        self._down.add_base(summed.numpy(), sums, 0)
        routes = Routes(pairs, numbers, of_pair)
        self._down.deltas.add(hidden.contiguous().numpy(), sums, 0, routes)
        if self._form.has_bias:
            biases = self._form.down_biases()[experts].float() * shares
            total += biases.unflatten(0, (tokens, each)).sum(1)
        return total.to(x.dtype)

    def _inner(
        self, x: torch.Tensor, of_pair: np.ndarray, pairs: np.ndarray, numbers: np.ndarray
    ) -> torch.Tensor:
        """Products of every pair with gate and up, side by side."""
        tokens = x.numpy()
        inner, begin = np.zeros((len(tokens), sum(self._widths)), np.float32), 0
        for each in self._first:
            each.add_base(tokens, inner, begin)
            begin += each.out
        if len(pairs) > len(tokens):
            inner = inner.take(of_pair, 0)
        routes, begin = Routes(of_pair, numbers, pairs), 0
        for each in self._first:
            each.deltas.add(tokens, inner, begin, routes)
            begin += each.out
        return torch.from_numpy(inner)


@dataclass(frozen=True)
class _Projection:
    """out: rows of every matrix. base: None where there is none."""

    out: int
    base: StoredMatrix | None
    deltas: RoutedDeltas

    @classmethod
    def of(cls, group: HeldGroup) -> _Projection:
        deltas = group.routed()
        assert deltas is not None
        return cls(group.shape[1], group.stored_base(), deltas)

    def add_base(self, x: np.ndarray, y: np.ndarray, column: int) -> None:
        if self.base is not None:
            self.base.add(x, y, column)


@cache
def _places(tokens: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """The token of every pair, and the numbers of the pairs: int64 `[tokens · each]`."""
    pairs = np.arange(tokens * each)
    return pairs // each, pairs

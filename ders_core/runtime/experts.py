"""The experts of a layer, computed from what is packed.

With y = Σ_k w_k E_k(x) and W_i = W_base + Δ_i, W_base x is the same for all chosen experts, and
Σ_k w_k W_base h_k = W_base Σ_k w_k h_k. So products with a base are taken once for a token, and
only those with deltas for each of its experts. Where a delta must be decoded for that, and tokens
are many, the weight that it makes with its base is multiplied instead: decoding takes as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from ders_core.compute.precision import multiplies
from ders_core.runtime.activation import activated
from ders_core.runtime.cache import WeightCache
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.grouped import GroupedLayer
from ders_core.runtime.held import HeldGroup
from ders_core.runtime.prepared import Prepared
from ders_core.runtime.routed import RoutedLayer

FewTokens = RoutedLayer | GroupedLayer


class PackedExperts(nn.Module):
    """What takes the place of the weights in a module of transformers that holds a layer's experts.

    form: of that module. groups: by projection, `gate` only where there is one. cache: of whole
    weights, from which every product is then taken; None: products are those of bases and deltas.
    """

    def __init__(
        self, form: ExpertsForm, groups: Mapping[str, HeldGroup], cache: WeightCache | None
    ) -> None:
        super().__init__()
        self.form = form
        self.groups = nn.ModuleDict(groups)
        self._cache = cache
        self._routed: Prepared[FewTokens] = Prepared()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What moves a model to a device or dtype, or frees it: what was made of what is held is
        not moved."""
        self._routed = Prepared()
        if self._cache is not None:
            self._cache.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares products of its own."""
        return {**self.__dict__, "_routed": Prepared()}

    def _routed_layer(self) -> FewTokens | None:
        """What takes a few tokens at once; None where nothing does, as with a cache of whole
        weights."""
        return self._routed.get(self._made_routed)

    def _made_routed(self) -> FewTokens | None:
        if self._cache is not None:
            return None
        groups = {name: self.group(name) for name in self.groups}
        return RoutedLayer.of(self.form, groups) or GroupedLayer.of(self.form, groups)

    def group(self, projection: str) -> HeldGroup:
        group: Any = self.groups[projection]
        assert isinstance(group, HeldGroup)
        return group

    def compute(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Σ_k w_k E_k(x) `[tokens, d]` in x's dtype, summed in float32.

        x: `[tokens, d]`; chosen: int64 `[tokens, k]`, a number that no expert has stands for none;
        weights: of the same shape.
        """
        routed = self._routed_layer()
        if routed is not None and routed.takes(x, chosen, weights):
            return routed.compute(x, chosen, weights)
        stored = x.dtype
        if not multiplies(x.dtype, x.device):
            x = x.float()
        form = self.form
        first = [_Shared(self.group(name), x) for name in ("gate", "up") if name in self.groups]
        widths = [each.group.shape[1] for each in first]
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        last = _Sums(self.group("down"), total)
        pairs = _PairsByExpert.of(chosen, form.num_experts)
        call = _Call(max((here.stop - here.start for _, here in pairs.ranges), default=0))
        biases = (form.first_biases(), form.down_biases()) if form.has_bias else None
        shares = weights.flatten()[pairs.places].unsqueeze(1)
        for expert, here in pairs.ranges:
            share, rows = shares[here], pairs.tokens[here]
            taken = x[rows]
            inner = [self._product(each.group, expert, call, taken, each, rows) for each in first]
            of_first = None if biases is None else biases[0][expert]
            hidden = activated(form, torch.cat(inner, 1), widths, of_first).to(x.dtype)
            if self._splits(last.group, expert, call) and not form.has_post_expert_norm:
                last.add(expert, rows, hidden, share)
                outer = last.group.delta_product(expert, hidden).float()
            else:
                outer = self._product(last.group, expert, call, hidden).float()
            if biases is not None:
                outer = outer + biases[1][expert]
            if form.has_post_expert_norm:
                outer = form.post_expert_norm(outer.to(x.dtype))
            # of one expert at a time, which has a token once: a GPU adds to a row that several
            # rows are added to in any order
            total.index_add_(0, rows, (outer * share).float())
        return last.total(x.dtype).to(stored)

    def _splits(self, group: HeldGroup, expert: int, call: _Call) -> bool:
        return self._cache is None and group.splits(expert, call.most)

    def _product(
        self,
        group: HeldGroup,
        expert: int,
        call: _Call,
        x: torch.Tensor,
        shared: _Shared | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x Ŵ_iᵀ. shared, rows: products of all tokens with bases, and which of them x is."""
        if not self._splits(group, expert, call):
            return nn.functional.linear(x, self._weight(group, expert, x.dtype, call))
        delta = group.delta_product(expert, x)
        if not group.bases:
            return delta
        base = group.base_of(expert)
        if shared is None or rows is None:
            return delta + group.base_product(base, x)
        return delta + shared.product(base, rows)

    def _weight(
        self, group: HeldGroup, expert: int, dtype: torch.dtype, call: _Call
    ) -> torch.Tensor:
        if self._cache is None:
            return group.weight(expert, dtype, call.wide.setdefault(id(group), {}))
        return self._cache.get((id(group), expert), lambda: group.weight(expert)).to(dtype)


@dataclass
class _Call:
    """What all experts of one call share.

    most: tokens of the expert that has most of them; all experts split or none, since for one that
    does all tokens are multiplied with the base. wide: bases in float32 of each group, by number.
    """

    most: int
    wide: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)


class _Shared:
    """The products of all tokens with a group's bases, each taken when it is first needed."""

    def __init__(self, group: HeldGroup, x: torch.Tensor) -> None:
        self.group, self._x = group, x
        self._products: dict[int, torch.Tensor] = {}

    def product(self, base: int, rows: torch.Tensor) -> torch.Tensor:
        """Of the tokens of these rows."""
        if self.group.bases > 1:  # each is of few experts, so of few tokens
            return self.group.base_product(base, self._x[rows])
        if base not in self._products:
            self._products[base] = self.group.base_product(base, self._x)
        return self._products[base][rows]


class _Sums:
    """Σ_k w_k h_k of every token, for each base, until the one product with it."""

    def __init__(self, group: HeldGroup, total: torch.Tensor) -> None:
        self.group, self._total = group, total
        self._sums: dict[int, torch.Tensor] = {}

    def add(
        self, expert: int, rows: torch.Tensor, hidden: torch.Tensor, share: torch.Tensor
    ) -> None:
        if not self.group.bases:
            return
        base = self.group.base_of(expert)
        if base not in self._sums:
            shape = (len(self._total), hidden.shape[1])
            self._sums[base] = torch.zeros(shape, dtype=torch.float32, device=hidden.device)
        self._sums[base].index_add_(0, rows, (hidden * share).float())

    def total(self, dtype: torch.dtype) -> torch.Tensor:
        """With the bases' products, which are taken in `dtype`."""
        total = self._total
        for base, summed in self._sums.items():
            total = total + self.group.base_product(base, summed.to(dtype)).float()
        return total


@dataclass(frozen=True)
class _PairsByExpert:
    """Pairs of a token and an expert, by expert. tokens, places: int64 `[pairs]`, of each the token
    and its place in the flattened choice. ranges: experts that have any, and which pairs."""

    tokens: torch.Tensor
    places: torch.Tensor
    ranges: list[tuple[int, slice]]

    @classmethod
    def of(cls, chosen: torch.Tensor, experts: int) -> _PairsByExpert:
        """A device is waited for once, to learn how many tokens each expert has."""
        flat = chosen.flatten()
        known = torch.where((flat >= 0) & (flat < experts), flat, experts)
        counts = torch.zeros(experts + 1, dtype=torch.int64, device=flat.device)
        counts.scatter_add_(0, known, torch.ones_like(known))
        ends = [0, *accumulate(counts.tolist()[:experts])]
        places = known.argsort(stable=True)[: ends[-1]]
        each = [(expert, slice(begin, end)) for expert, (begin, end) in enumerate(pairwise(ends))]
        taken = [(expert, here) for expert, here in each if here.stop > here.start]
        return cls(places // chosen.shape[1], places, taken)

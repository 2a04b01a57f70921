"""The watch that every matrix product passes: where its weight lies in memory tells which expert of
which layer it is, so its other operand is that expert's input, and is added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.calibrate.locate import Place
from ders_core.errors import EvaluationError
from ders_core.pipeline.calibration import IN

ROWS = 4096
"""Tokens whose xᵀx is added at once: their float32 rows are what takes memory."""

_aten = torch.ops.aten
PRODUCTS: dict[Any, int] = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.mv.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
    _aten.addmv.default: 1,
}
"""The products that linear layers, matmul and einsum come down to -> the place of the first factor
among the arguments; the second factor follows."""

COPIES = (_aten._to_copy.default, _aten.clone.default)
"""What a model makes of a weight that it wants in another dtype."""


@dataclass
class Sums:
    """Of one side of a layer. total: Σ x xᵀ `[in, in]` float32, or its diagonal. counts: tokens of
    each expert, int64."""

    total: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(cls, experts: int, width: int, max_width: int, device: torch.device) -> Sums:
        shape = (width, width) if width <= max_width else (width,)
        counts = torch.zeros(experts, dtype=torch.int64, device=device)
        return cls(torch.zeros(shape, dtype=torch.float32, device=device), counts)

    def add(self, expert: int, x: torch.Tensor, tokens: torch.Tensor) -> None:
        """x: `[n, in]`. tokens: bool `[n]`, which of the rows count."""
        self.counts[expert] += tokens.sum()
        for rows, counted in zip(x.split(ROWS), tokens.split(ROWS), strict=True):
            numbers = rows.float() * counted[:, None]
            if self.total.dim() == 2:
                self.total.addmm_(numbers.T, numbers)
            else:
                self.total += numbers.square().sum(0)

    def mean(self) -> torch.Tensor:
        """E[x xᵀ], float32, exactly symmetric."""
        mean = self.total.cpu().double() / int(self.counts.sum())
        return ((mean + mean.T) / 2 if mean.dim() == 2 else mean).float()


@dataclass(eq=False)
class Watch(TorchDispatchMode):
    """Looks at every matrix product while it is entered, and adds up experts' inputs."""

    places: dict[int, Place]
    sums: dict[tuple[int, str], Sums]
    rows: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(layer, expert) -> bool `[n]`, which of its last input's rows are tokens."""
    copies: dict[str, tuple[torch.Tensor, dict[int, Place]]] = field(default_factory=dict)
    """side -> the last copy of weights, kept so that its memory stays its own, and its places."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        first = PRODUCTS.get(func)
        if first is not None:
            self._look(*args[first : first + 2])
        made = func(*args, **(kwargs or {}))
        if func in COPIES and args[0].data_ptr() in self.places:
            self._follow(args[0], made)
        return made

    def _follow(self, weight: torch.Tensor, copy: torch.Tensor) -> None:
        """A copy of one expert's weights, or of several experts' `[experts, ...]`."""
        several = weight.dim() == 3
        pairs = zip(weight, copy, strict=True) if several else [(weight, copy)]
        places = {
            new.data_ptr(): replace(place, end=new.data_ptr() + new.numel() * new.itemsize)
            for old, new in pairs
            for place in [self.places.get(old.data_ptr())]
            if place is not None
        }
        self.copies[next(iter(places.values())).side] = copy, places

    def _place(self, weight: torch.Tensor) -> Place | None:
        address = weight.data_ptr()
        known = (self.places, *(places for _, places in self.copies.values()))
        return next((places[address] for places in known if address in places), None)

    def _look(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """One product, or a batch of them: `[n, in]` times `[in, out]`, or both turned."""
        if right.dim() == 1:  # a matrix times a vector
            right = right[:, None]
        if left.dim() == 2:
            left, right = left[None], right[None]
        if self._place(left[0]) is None and self._place(right[0]) is None:
            return
        for one, other in zip(left, right, strict=True):
            for weight, x in ((other, one), (one, other.T)):
                place = self._place(weight)
                if place is not None:
                    self._add(place, weight, x)

    def _add(self, place: Place, weight: torch.Tensor, x: torch.Tensor) -> None:
        """A row of nothing but zeros is no token: an expert's place that none has taken."""
        reach = sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
        if weight.data_ptr() + reach * weight.itemsize >= place.end:
            raise EvaluationError(
                f"layer {place.layer}: the model multiplies every token with all experts at once, "
                "so which of them it chose cannot be told"
            )
        key = place.layer, place.expert
        if place.side == IN:
            self.rows[key] = (x != 0).any(-1)
        tokens = self.rows.get(key)
        if tokens is None or len(tokens) != len(x):
            tokens = (x != 0).any(-1)
        self.sums[place.layer, place.side].add(place.expert, x, tokens)

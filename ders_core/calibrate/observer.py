"""Observe every matrix product of a model. The address of a product's weight shows its layer and
expert, so the other operand is that expert's input; its second moments are added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.calibrate.locate import WeightLocation
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
"""The products that linear layers, matmul and einsum come down to -> the index of the first factor
among the arguments; the second factor follows."""

COPIES = (_aten._to_copy.default, _aten.clone.default)
"""The operations with which a model brings a weight to another dtype."""


@dataclass
class Sums:
    """Sums over the inputs of one side of a layer.

    total: Σ x xᵀ `[in, in]` float32, or its diagonal `[in]`. counts: int64 `[experts]`, tokens.
    """

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
class InputObserver(TorchDispatchMode):
    """Looks at every matrix product while it is entered, and adds up experts' inputs."""

    locations: dict[int, WeightLocation]
    sums: dict[tuple[int, str], Sums]
    rows: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(layer, expert) -> bool `[n]`, which of its last input's rows are tokens."""
    copies: dict[str, tuple[torch.Tensor, dict[int, WeightLocation]]] = field(default_factory=dict)
    """side -> the last copy of weights and its locations; kept so that its memory is not reused."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        first = PRODUCTS.get(func)
        if first is not None:
            self._look(*args[first : first + 2])
        output = func(*args, **(kwargs or {}))
        if func in COPIES and args[0].data_ptr() in self.locations:
            self._follow(args[0], output)
        return output

    def _follow(self, weight: torch.Tensor, copy: torch.Tensor) -> None:
        """A copy of one expert's weights, or of several experts' `[experts, ...]`."""
        several = weight.dim() == 3
        pairs = zip(weight, copy, strict=True) if several else [(weight, copy)]
        locations = {
            new.data_ptr(): replace(location, end=new.data_ptr() + new.numel() * new.itemsize)
            for old, new in pairs
            for location in [self.locations.get(old.data_ptr())]
            if location is not None
        }
        self.copies[next(iter(locations.values())).side] = copy, locations

    def _locate(self, weight: torch.Tensor) -> WeightLocation | None:
        address = weight.data_ptr()
        known = (self.locations, *(locations for _, locations in self.copies.values()))
        return next((locations[address] for locations in known if address in locations), None)

    def _look(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """One product, or a batch of them: `[n, in]` times `[in, out]`, or both turned."""
        if right.dim() == 1:  # a matrix times a vector
            right = right[:, None]
        if left.dim() == 2:
            left, right = left[None], right[None]
        if self._locate(left[0]) is None and self._locate(right[0]) is None:
            return
        for one, other in zip(left, right, strict=True):
            for weight, x in ((other, one), (one, other.T)):
                location = self._locate(weight)
                if location is not None:
                    self._add(location, weight, x)

    def _add(self, location: WeightLocation, weight: torch.Tensor, x: torch.Tensor) -> None:
        """Add inputs `x` `[n, in]`. A row of zeros is padding: a slot that no token filled."""
        reach = sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
        if weight.data_ptr() + reach * weight.itemsize >= location.end:
            raise EvaluationError(
                f"layer {location.layer}: the model multiplies every token with all experts at "
                "once, so its choice of experts cannot be observed"
            )
        key = location.layer, location.expert
        if location.side == IN:
            self.rows[key] = (x != 0).any(-1)
        tokens = self.rows.get(key)
        if tokens is None or len(tokens) != len(x):
            tokens = (x != 0).any(-1)
        self.sums[location.layer, location.side].add(location.expert, x, tokens)

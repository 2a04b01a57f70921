"""Observe every matrix product of a forward and a backward pass: in the first an expert's weight
meets its inputs, in the second the gradient after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.calibrate.costs import Marginals
from ders_core.calibrate.observer import COPIES, PRODUCTS
from ders_core.calibrate.placement import Lines, Placement, Regions
from ders_core.errors import EvaluationError


@dataclass(frozen=True)
class _Input:
    """What entered a product. x: `[n, in]`. source, version: the tensor whose memory it is, and how
    often that had been written to."""

    x: torch.Tensor
    source: torch.Tensor
    version: int


Key = tuple[int, str, int, int, int]
"""Layer, projection, expert, first and last row: an input waits under it for its gradient."""


@dataclass(eq=False)
class GradientObserver(TorchDispatchMode):
    """Looks at every matrix product while it is entered, which is for one window, and adds up what
    errors in experts' weights cost.

    A weight of `[out, in]` is summed over `in` in the forward pass, over `out` in the backward
    pass. Gradients come in the reverse order of the inputs of the same weight.
    """

    regions: Regions
    costs: Mapping[tuple[int, str], Marginals]
    window: int
    waiting: dict[Key, list[_Input]] = field(default_factory=dict)
    multiplied: set[tuple[int, str]] = field(default_factory=set)
    """Layers and projections whose weights had inputs."""
    is_backward: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        first = PRODUCTS.get(func)
        if first is not None:
            self._look(*args[first : first + 2])
        output = func(*args, **(kwargs or {}))
        if func in COPIES and not self.is_backward:
            self.regions.follow(args[0], output)
        return output

    def _look(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """One product of the forward or the backward pass."""
        for weight, axis, source, values in self._factors(left, right):
            for placement, shown in self._shown(weight, axis):
                group = placement.layer, placement.projection
                key = (*group, placement.expert, shown.rows.start, shown.rows.stop)
                if self.is_backward:
                    self._add(key, shown, values)
                    continue
                self.multiplied.add(group)
                if source.requires_grad and torch.is_grad_enabled():
                    kept = _Input(values, source, source._version)
                    self.waiting.setdefault(key, []).append(kept)

    def _factors(
        self, left: torch.Tensor, right: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
        """Each factor that may be an expert's weight, the axis along which its rows then lie, and
        the other factor: as it came, and as `[n, in]`, in the backward pass `[n, out]`.

        The product, or batch of them, is of `[n, in]` and `[in, out]`, or both turned; in the
        backward pass of `[n, out]` and `[out, in]`.
        """
        sources = left, right
        if right.dim() == 1:  # a matrix times a vector
            right = right[:, None]
        if left.dim() == 2:
            left, right = left[None], right[None]
        if not (self.regions.hold(left) or self.regions.hold(right)):
            return
        for one, other in zip(left, right, strict=True):
            yield other, 1 - self.is_backward, sources[0], one
            yield one, int(self.is_backward), sources[1], other.T

    def _shown(self, weight: torch.Tensor, axis: int) -> Iterator[tuple[Placement, Lines]]:
        """The experts' projections that a factor shows, with rows along `axis`."""
        region = self.regions.find(weight)
        if region is None:
            return
        shown = [(each, each.lines_in(weight, axis)) for each in region.placements]
        if all(lines is None for _, lines in shown):
            raise EvaluationError(
                f"layer {region.placements[0].layer}: the model multiplies with its experts' "
                "weights in another form than they have, so gradients cannot be told apart; "
                "calibrate without gradients"
            )
        yield from ((each, lines) for each, lines in shown if lines is not None)

    def _add(self, key: Key, shown: Lines, gradient: torch.Tensor) -> None:
        """A gradient `[n, lines]` has come back to the last of the inputs that wait for it."""
        layer, projection, expert, *_ = key
        inputs = self.waiting.get(key)
        kept = inputs.pop() if inputs else None
        if kept is None or len(kept.x) != len(gradient) or kept.source._version != kept.version:
            raise EvaluationError(
                f"layer {layer}, {projection}: the inputs of expert {expert} and their gradients "
                "do not belong together, because the model computes them in other ways than by "
                "products with its weights; calibrate without gradients"
            )
        costs = self.costs[layer, projection]
        costs.add(expert, shown.rows, self.window, kept.x, gradient[:, shown.lines])

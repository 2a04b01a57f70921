"""Observe every matrix product of a forward and a backward pass: in the first a weight meets its
inputs, in the second the gradient after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.calibrate.joint import JointTokens
from ders_core.calibrate.observer import COPIES, PRODUCTS
from ders_core.calibrate.placement import Key, Lines, Placement, Regions
from ders_core.calibrate.trouble import Trouble


class Sums(Protocol):
    """What is added up of the weights with one key."""

    def enter(self, part: int, rows: slice, x: torch.Tensor, source: torch.Tensor) -> None:
        """Inputs x `[n, in]` enter these rows of a weight. source: the tensor whose memory x is."""

    def add(
        self, part: int, rows: slice, window: int, x: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Add tokens' inputs x `[n, in]`, and the gradients `[n, rows]` after these rows of the
        weight. window: the number of that which they are of."""

    def refuse(self, trouble: Trouble, part: int) -> None:
        """What the model does with the weight cannot be told apart."""


@dataclass(frozen=True)
class _Input:
    """What entered a product. x: `[n, in]`. source, version: the tensor whose memory it is, and how
    often that had been written to. tokens: the tokens' numbers, where they are needed."""

    x: torch.Tensor
    source: torch.Tensor
    version: int
    tokens: list[int] | None


Place = tuple[Key, int, int, int]
"""Key, part, first and last row: an input waits under it for its gradient."""


@dataclass(eq=False)
class GradientObserver(TorchDispatchMode):
    """Looks at every matrix product while it is entered, which is for one window, and adds up what
    errors in weights cost.

    A weight of `[out, in]` is summed over `in` in the forward pass, over `out` in the backward
    pass. Gradients come in the reverse order of the inputs of the same weight. sums: by the keys of
    the weights. joint: sees also which tokens these are.
    """

    regions: Regions
    sums: Mapping[Any, Sums]
    window: int
    joint: JointTokens | None = None
    waiting: dict[Place, list[_Input]] = field(default_factory=dict)
    multiplied: dict[Key, None] = field(default_factory=dict)
    """Keys of the weights that had inputs."""
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
                place = placement.key, placement.part, shown.rows.start, shown.rows.stop
                if self.is_backward:
                    self._add(place, shown, values)
                else:
                    self._enter(place, shown.rows, values, source)

    def _factors(
        self, left: torch.Tensor, right: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
        """Each factor that may be a weight, the axis along which its rows then lie, and the other
        factor: as it came, and as `[n, in]`, in the backward pass `[n, out]`.

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
        """The weights that a factor shows, with rows along `axis`."""
        region = self.regions.find(weight)
        if region is None:
            return
        shown = [(each, each.lines_in(weight, axis)) for each in region.placements]
        if not region.contains(weight):
            trouble = Trouble.AT_ONCE
        elif all(lines is None for _, lines in shown):
            trouble = Trouble.ANOTHER_FORM
        else:
            yield from ((each, lines) for each, lines in shown if lines is not None)
            return
        for each in region.placements:
            self.sums[each.key].refuse(trouble, each.part)

    def _enter(self, place: Place, rows: slice, x: torch.Tensor, source: torch.Tensor) -> None:
        key, part, *_ = place
        self.multiplied[key] = None
        self.sums[key].enter(part, rows, x, source)
        if source.requires_grad and torch.is_grad_enabled():
            tokens = self.joint.entered(key, part, rows, x) if self.joint else None
            kept = _Input(x, source, source._version, tokens)
            self.waiting.setdefault(place, []).append(kept)

    def _add(self, place: Place, shown: Lines, values: torch.Tensor) -> None:
        """A gradient `[n, lines]` has come back to the last of the inputs that wait for it."""
        key, part, *_ = place
        inputs = self.waiting.get(place)
        kept = inputs.pop() if inputs else None
        if kept is None or len(kept.x) != len(values) or kept.source._version != kept.version:
            self.sums[key].refuse(Trouble.APART, part)
            return
        gradient = values[:, shown.lines]
        self.sums[key].add(part, shown.rows, self.window, kept.x, gradient)
        if self.joint:
            self.joint.add(key, part, shown.rows, kept.tokens, kept.x, gradient)

"""Second moments of experts' inputs, each weighted by the squared gradient after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ders_core.calibrate.input_sums import InputSums
from ders_core.pipeline.moments import EACH, WEIGHTED


@dataclass(frozen=True)
class WeightedSums:
    """Of one side of a layer. experts: the sums of each routed expert; one and the same where they
    are not kept apart."""

    experts: Sequence[InputSums]

    @classmethod
    def together(
        cls, experts: int, width: int, max_width: int, device: torch.device
    ) -> WeightedSums:
        return cls([InputSums.empty(width, max_width, device)] * experts)

    @classmethod
    def apart(cls, experts: int, width: int, max_width: int, device: torch.device) -> WeightedSums:
        """As many times the memory as there are experts."""
        return cls([InputSums.empty(width, max_width, device) for _ in range(experts)])

    def add(self, expert: int, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """x: `[n, in]`. gradient: `[n, out]`, after the weight that x enters."""
        self.experts[expert].add(x, gradient.float().square().sum(1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their kinds in a calibration file, float32, on the CPU; none if no input came."""
        alone = {id(each): each for each in self.experts}
        count = sum(each.count for each in alone.values())
        if not count:
            return {}
        first, *others = alone.values()
        total = first.total.cpu().clone()
        for each in others:  # one matrix, and not all of them, besides
            total += each.total.cpu()
        tensors = {WEIGHTED: InputSums(total, count).mean()}
        if len(alone) > 1:
            tensors[EACH] = torch.stack(
                [each.mean() if each.count else torch.zeros_like(total) for each in self.experts]
            )
        return tensors

"""Second moments of what enters a product, added up; each input may have a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ders_core.calibrate.observer import ROWS

MAX_WIDTH = 8192
"""Of wider inputs only the diagonal is kept, unless another width is asked for."""


@dataclass
class InputSums:
    """total: Σ w x xᵀ `[in, in]` float32, or its diagonal `[in]`, with w = 1 or the inputs'
    weights. count: of the inputs."""

    total: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int, max_width: int, device: torch.device) -> InputSums:
        shape = (width, width) if width <= max_width else (width,)
        return cls(torch.zeros(shape, dtype=torch.float32, device=device))

    def add(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """x: `[n, in]`. weights: `[n]`, not negative."""
        self.count += len(x)
        roots = None if weights is None else weights.float().sqrt()[:, None]
        for begin in range(0, len(x), ROWS):
            numbers = x[begin : begin + ROWS].float()
            if roots is not None:
                numbers = numbers * roots[begin : begin + ROWS]
            if self.total.dim() == 2:
                self.total.addmm_(numbers.T, numbers)
            else:
                self.total += numbers.square().sum(0)

    def mean(self) -> torch.Tensor:
        """E[x xᵀ], float32, exactly symmetric, on the CPU."""
        mean = self.total.cpu().double() / self.count
        return ((mean + mean.T) / 2 if mean.dim() == 2 else mean).float()

"""Second moments of what enters a product, added up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ders_core.calibrate.observer import ROWS


@dataclass
class InputSums:
    """total: Σ x xᵀ `[in, in]` float32, or its diagonal `[in]`. count: of the inputs."""

    total: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int, max_width: int, device: torch.device) -> InputSums:
        shape = (width, width) if width <= max_width else (width,)
        return cls(torch.zeros(shape, dtype=torch.float32, device=device))

    def add(self, x: torch.Tensor) -> None:
        """x: `[n, in]`."""
        self.count += len(x)
        for rows in x.split(ROWS):
            numbers = rows.float()
            if self.total.dim() == 2:
                self.total.addmm_(numbers.T, numbers)
            else:
                self.total += numbers.square().sum(0)

    def mean(self) -> torch.Tensor:
        """E[x xᵀ], float32, exactly symmetric, on the CPU."""
        mean = self.total.cpu().double() / self.count
        return ((mean + mean.T) / 2 if mean.dim() == 2 else mean).float()

"""A delta whose rows are subtracted where they are read, or one that is at hand."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.synthesis import difference
from ders_core.compute import kernels
from ders_core.later import np, torch


@dataclass(frozen=True)
class Deltas:
    """weight, base: `[out, in]` in storage dtype; without a base, weight is the delta itself, in
    float32."""

    weight: torch.Tensor
    base: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def of_rows(self, rows: slice) -> torch.Tensor:
        """float32 `[rows, in]`, not to be changed."""
        if self.base is None:
            return self.weight[rows]
        return difference(self.weight[rows], self.base[rows])

    @property
    def for_loops(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        """(bits of the weight, bits of the base, their kind) as compiled loops take them; None
        where there is nothing for these to work on, or they cannot."""
        base = self.weight[:0] if self.base is None else self.base
        if not self.weight.numel() or not kernels.takes_stored(self.weight, base):
            return None
        return kernels.bits(self.weight), kernels.bits(base), kernels.kind_of(base.dtype)

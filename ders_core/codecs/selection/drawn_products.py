"""Products with values at drawn places on a CPU: places are drawn while they are multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.prng import position_keys
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, Routes
from ders_core.compute import kernels
from ders_core.later import np, torch

MOST_PAIRS = 16
"""Of one expert: each value is multiplied with every token by itself."""

MOST_DRAWN = 1 << 31
"""Entries of a matrix whose places loops draw."""


@dataclass(frozen=True)
class RoutedDrawn(RoutedDeltas):
    """values: floats that `kind_of` knows `[experts, kept]`, of matrices of `shape` (out, in).
    seeds: of each expert."""

    values: torch.Tensor
    shape: tuple[int, int]
    seeds: Sequence[int]
    gain: float

    @classmethod
    def of(cls, coded: CodedExperts, gain: float) -> RoutedDrawn | None:
        """Of experts of which `values` are all that is kept; None if loops do not draw that."""
        values, shape = coded.parts["values"], coded.shape
        if not values.numel() or math.prod(shape) > MOST_DRAWN or not kernels.is_kind(values.dtype):
            return None
        return cls(values, shape, [context.seed for context in coded.contexts], gain)

    @cached_property
    def _keys(self) -> list[tuple[int, np.ndarray]]:
        return [position_keys(math.prod(self.shape), seed) for seed in self.seeds]

    @property
    def most_pairs(self) -> int:
        return MOST_PAIRS

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        from ders_core.compute.kernels import drawn_products

        values, kind = kernels.bits(self.values), kernels.kind_of(self.values.dtype)
        size, gain = math.prod(self.shape), np.float32(self.gain)
        for expert in np.unique(routes.experts[routes.experts >= 0]).tolist():
            (pairs,) = np.nonzero(routes.experts == expert)
            bits, keys = self._keys[expert]
            inputs, outputs = routes.inputs[pairs], routes.outputs[pairs]
            drawn_products.add(
                values[expert], kind, gain, size, bits, keys, x, inputs, y, column, outputs
            )

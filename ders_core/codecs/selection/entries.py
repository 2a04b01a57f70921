"""The entries of one delta, read a few at a time, so that a selection need not hold a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

from ders_core.codecs.synthesis import difference
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values
from ders_core.later import torch


class Entries(ABC):
    """shape: (out, in) of the delta. A flat place is row · in + column."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.shape, self.device = (shape[0], shape[1]), device

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """All entries, `[out, in]` float32; not to be changed."""

    @abstractmethod
    def read(self, piece: slice) -> torch.Tensor:
        """The entries at the flat places of `piece`, float32 `[n]`; the next call may overwrite
        them."""

    @abstractmethod
    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The entries at flat places, int64 `[n]` from 0 up: float32 `[n]`."""

    def at_or_zero(self, places: torch.Tensor) -> torch.Tensor:
        """The same, with 0 at the place −1."""
        if not places.numel() or int(places.min()) >= 0:
            return self.at(places)
        return torch.where(places >= 0, self.at(places.clamp_min(0)), 0.0)


class MatrixEntries(Entries):
    """Of a delta `[out, in]` float32."""

    def __init__(self, delta: torch.Tensor) -> None:
        super().__init__(delta.shape, delta.device)
        self._delta, self._flat = delta, delta.reshape(-1)

    @property
    def matrix(self) -> torch.Tensor:
        return self._delta

    def read(self, piece: slice) -> torch.Tensor:
        return self._flat[piece]

    def at(self, places: torch.Tensor) -> torch.Tensor:
        return self._flat.index_select(0, places)


class DifferenceEntries(Entries):
    """Of W − W_base, both `[out, in]` in storage dtype; subtracted where an entry is read."""

    def __init__(self, weight: torch.Tensor, base: torch.Tensor) -> None:
        super().__init__(weight.shape, weight.device)
        self._weight, self._base = weight, base
        self._flat_weight, self._flat_base = weight.reshape(-1), base.reshape(-1)

    @cached_property
    def matrix(self) -> torch.Tensor:
        return difference(self._weight, self._base)

    @cached_property
    def _buffers(self) -> torch.Tensor:
        length = min(chunk_values(self.device), self.size)
        return torch.empty(2, length, dtype=torch.float32, device=self.device)

    def read(self, piece: slice) -> torch.Tensor:
        weight, base = self._buffers[:, : piece.stop - piece.start].unbind()
        if kernels.takes_stored(self._flat_weight, self._flat_base):
            from ders_core.compute.kernels import differences

            ours = kernels.bits(self._flat_weight[piece])
            common = kernels.bits(self._flat_base[piece])
            kind = kernels.kind_of(self._weight.dtype)
            differences.subtract(ours, common, kind, weight.numpy())
            return weight
        return weight.copy_(self._flat_weight[piece]).sub_(base.copy_(self._flat_base[piece]))

    def at(self, places: torch.Tensor) -> torch.Tensor:
        if kernels.takes_stored(self._flat_weight, self._flat_base) and kernels.takes(places):
            from ders_core.compute.kernels import entries

            values = fresh(places.shape, torch.float32)
            both = kernels.bits(self._flat_weight), kernels.bits(self._flat_base)
            kind = kernels.kind_of(self._weight.dtype)
            entries.gather(*both, kind, places.numpy(), values.numpy())
            return values
        weight = self._flat_weight.index_select(0, places).float()
        return weight.sub_(self._flat_base.index_select(0, places).float())

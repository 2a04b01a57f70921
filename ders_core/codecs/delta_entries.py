"""The entries of one delta, read a few at a time, so that a codec need not hold a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

from ders_core.codecs.coding.block_draws import BlockDraw
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
    def every(self, stride: int) -> torch.Tensor:
        """Each n-th entry from the first one on, float32 `[n]`."""

    def read_scaled(
        self, rows: slice, of_rows: torch.Tensor, of_columns: torch.Tensor, scaled: torch.Tensor
    ) -> None:
        """Fill scaled, float32 `[rows, in]`, with the entries of some rows, multiplied by the
        numbers of their rows, `[rows]`, and then by those of their columns, `[in]`."""
        width = self.shape[1]
        deltas = self.read(slice(rows.start * width, rows.stop * width)).view(scaled.shape)
        if not kernels.takes(deltas):
            torch.mul(deltas, of_rows.unsqueeze(1), out=scaled).mul_(of_columns)
            return
        from ders_core.compute.kernels import scaled as loops

        loops.scale(*(tensor.numpy() for tensor in (deltas, of_rows, of_columns, scaled)))

    @abstractmethod
    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The entries at flat places, int64 `[n]` from 0 up: float32 `[n]`."""

    def read_drawn(self, values: torch.Tensor, draw: BlockDraw) -> None:
        """Fill values, float32 `[count]`, with entries that are drawn; on the CPU."""
        begin = 0
        for places in draw.chunks(self.device):
            values[begin : begin + places.numel()] = self.at(places)
            begin += places.numel()

    def at_or_zero(self, places: torch.Tensor) -> torch.Tensor:
        """The same, with 0 at the place −1."""
        if places.device.type == "cpu" and (not places.numel() or int(places.min()) >= 0):
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

    def every(self, stride: int) -> torch.Tensor:
        return self._flat[::stride].contiguous()

    def at(self, places: torch.Tensor) -> torch.Tensor:
        return self._flat.index_select(0, places)


class DifferenceEntries(Entries):
    """Of W − W_base, both `[out, in]` in storage dtype; subtracted where an entry is read."""

    def __init__(self, weight: torch.Tensor, base: torch.Tensor) -> None:
        super().__init__(weight.shape, weight.device)
        self._weight, self._base = weight, base
        self._flat_weight, self._flat_base = weight.reshape(-1), base.reshape(-1)
        self._kept: torch.Tensor | None = None

    @cached_property
    def matrix(self) -> torch.Tensor:
        return difference(self._weight, self._base)

    def _buffers(self, length: int) -> torch.Tensor:
        """float32 `[2, length]`, the same again if it is long enough."""
        if self._kept is None or self._kept.shape[1] < length:
            longer = max(min(chunk_values(self.device), self.size), length)
            self._kept = torch.empty(2, longer, dtype=torch.float32, device=self.device)
        return self._kept[:, :length]

    def read(self, piece: slice) -> torch.Tensor:
        weight, base = self._buffers(piece.stop - piece.start).unbind()
        if kernels.takes_stored(self._flat_weight, self._flat_base):
            from ders_core.compute.kernels import differences

            ours = kernels.bits(self._flat_weight[piece])
            common = kernels.bits(self._flat_base[piece])
            kind = kernels.kind_of(self._weight.dtype)
            differences.subtract(ours, common, kind, weight.numpy())
            return weight
        return weight.copy_(self._flat_weight[piece]).sub_(base.copy_(self._flat_base[piece]))

    def every(self, stride: int) -> torch.Tensor:
        sources = self._flat_weight, self._flat_base
        weight, base = (values[::stride].contiguous().view(1, -1) for values in sources)
        return difference(weight, base).view(-1)

    def read_scaled(
        self, rows: slice, of_rows: torch.Tensor, of_columns: torch.Tensor, scaled: torch.Tensor
    ) -> None:
        ours, common = self._weight[rows], self._base[rows]
        if not kernels.takes_stored(ours, common):
            super().read_scaled(rows, of_rows, of_columns, scaled)
            return
        from ders_core.compute.kernels import scaled as loops

        kind = kernels.kind_of(ours.dtype)
        factors = (tensor.numpy() for tensor in (of_rows, of_columns, scaled))
        loops.scale_differences(kernels.bits(ours), kernels.bits(common), kind, *factors)

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

    def read_drawn(self, values: torch.Tensor, draw: BlockDraw) -> None:
        if not kernels.takes_stored(self._flat_weight, self._flat_base):
            super().read_drawn(values, draw)
            return
        from ders_core.compute.kernels import block_draws

        both = kernels.bits(self._flat_weight), kernels.bits(self._flat_base)
        kind = kernels.kind_of(self._weight.dtype)
        block_draws.gather(*both, kind, *draw.for_loops(), values.numpy())

"""Deltas of a group one after another, as their spectra are computed from: rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.streaming import matrices
from ders_core.compute import kernels
from ders_core.compute.buffers import borrow
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.later import torch


class Desk:
    """Where one thread at a time makes deltas on a CPU; its memory is used for one expert after
    another."""

    def __init__(
        self,
        base: torch.Tensor,
        dtype: torch.dtype,
        memory: ExitStack,
        kept: torch.Tensor | None,
    ) -> None:
        shape = tuple(base.shape)
        self._base, self._kept = base, kept
        if kept is None:
            self._weight = memory.enter_context(borrow(shape, base.dtype))
        self._delta = memory.enter_context(borrow(shape, dtype))

    def delta(self, group: ExpertGroup, expert: int) -> torch.Tensor:
        """Δ_i `[out, in]`; valid until the next one."""
        weight = self._read(group, expert)
        if self._delta.dtype == torch.float32 and kernels.takes_stored(weight, self._base):
            from ders_core.compute.kernels import differences

            minuend, subtrahend = (kernels.bits(each).reshape(-1) for each in (weight, self._base))
            kind, deltas = kernels.kind_of(weight.dtype), self._delta.view(-1).numpy()
            differences.subtract(minuend, subtrahend, kind, deltas)
            return self._delta
        return _subtracted(weight, self._base, self._delta)

    def _read(self, group: ExpertGroup, expert: int) -> torch.Tensor:
        """W_i in storage dtype."""
        if self._kept is not None:
            return self._kept[expert]
        group.experts[expert].read_into(self._weight, slice(0, group.shape[1]))
        return self._weight


def deltas_on_gpu(
    group: ExpertGroup, base: torch.Tensor, dtype: torch.dtype, kept: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Δ_i `[out, in]` of each expert on the GPU of the base, which nothing waits for. kept: the
    weights `[K, out, in]` there; None to read each expert, ahead."""
    weights = kept if kept is not None else (each for _, each in matrices(group, base.device))
    for weight in weights:
        delta = torch.empty(base.shape, dtype=dtype, device=base.device)
        yield _subtracted(weight, base, delta)


def _subtracted(weight: torch.Tensor, base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The delta, written into the memory for it."""
    if weight.dtype == delta.dtype:
        return torch.sub(weight, base, out=delta)
    for rows in row_pieces(weight.shape, chunk_values(weight.device)):
        delta[rows] = weight[rows].float().sub_(base[rows].float())
    return delta

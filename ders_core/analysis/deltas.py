"""Deltas of a group one after another, as their spectra are computed from: rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.held import is_plain
from ders_core.checkpoint.streaming import matrices
from ders_core.compute import kernels
from ders_core.compute.buffers import borrow
from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.later import torch

READ_BYTES = 2 << 20
"""Of a weight that lies in a local file, read at a time: enough for a disk, and what is read is
subtracted from while it lies in a processor's cache."""


class Desk:
    """Where one thread at a time makes deltas on a CPU; its memory is used for one expert after
    another."""

    def __init__(
        self,
        group: ExpertGroup,
        base: torch.Tensor,
        dtype: torch.dtype,
        memory: ExitStack,
        kept: torch.Tensor | None,
    ) -> None:
        """group: whose experts' deltas are made. memory: as long as it is open, so are they."""
        self._group, self._base, self._kept = group, base, kept
        out, width = base.shape
        at_once = out
        if is_plain(group):
            at_once = min(out, max(1, READ_BYTES // max(width * base.dtype.itemsize, 1)))
        self._parts = [*pieces(out, max(at_once, 1))]
        if kept is None:
            self._weights = memory.enter_context(borrow((at_once, width), base.dtype))
        self._delta = memory.enter_context(borrow((out, width), dtype))

    def delta(self, expert: int) -> torch.Tensor:
        """Δ_i `[out, in]`; valid until the next one."""
        for rows in self._parts:
            weights, base, delta = self._read(expert, rows), self._base[rows], self._delta[rows]
            if delta.dtype == torch.float32 and kernels.takes_stored(weights, base):
                from ders_core.compute.kernels import differences

                minuend, subtrahend = (kernels.bits(each).reshape(-1) for each in (weights, base))
                kind, values = kernels.kind_of(weights.dtype), delta.view(-1).numpy()
                differences.subtract(minuend, subtrahend, kind, values)
            else:
                _subtracted(weights, base, delta)
        return self._delta

    def _read(self, expert: int, rows: slice) -> torch.Tensor:
        """Some rows of W_i in storage dtype."""
        if self._kept is not None:
            return self._kept[expert, rows]
        weights = self._weights[: rows.stop - rows.start]
        self._group.experts[expert].read_into(weights, rows)
        return weights


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

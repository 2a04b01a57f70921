"""Products with a delta that is nowhere whole: its tiles are subtracted where they are multiplied.

A tile stays in the processor's cache, so that weight and base, in two bytes each, take no longer to
read than a delta in float32 does, which would need twice the memory of the weight.
"""

from __future__ import annotations

from ders_core.codecs.fitting.deltas import Deltas
from ders_core.compute.krylov import Dense
from ders_core.compute.magnitude import scale_for
from ders_core.compute.pieces import chunk_values, largest_magnitude, row_pieces
from ders_core.compute.tensor_scale import tensor_scale_of
from ders_core.compute.threads import each_piece
from ders_core.later import torch


class DeltaProducts(Dense):
    """Δ `[out, in]` over a power of two, on a CPU. deltas: with a base."""

    def __init__(self, deltas: Deltas, base: torch.Tensor, scale: float) -> None:
        super().__init__(deltas.weight)
        self._base, self._scale = base, scale
        self._for_loops = deltas.for_loops  # asked once: tiles are many

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def tile(self, rows: slice, columns: slice) -> torch.Tensor:
        if self._for_loops is not None:
            from ders_core.compute.kernels import differences

            weight, base, kind = self._for_loops
            tile = torch.empty(rows.stop - rows.start, columns.stop - columns.start)
            differences.subtract_columns(
                weight[rows], base[rows], kind, columns.start, tile.numpy()
            )
        else:
            tile = self._matrix[rows, columns].float() - self._base[rows, columns].float()
        return tile if self._scale == 1 else tile / self._scale


def products_of(deltas: Deltas) -> tuple[Dense, torch.Tensor]:
    """(Δ over a scale, that scale): the squares of the first fit into float32. The scale is a power
    of two, float64 `[]` on the device of the delta, which nothing waits for."""
    if deltas.device.type != "cpu":
        delta = deltas.of_rows(slice(None))
        scale = tensor_scale_of(delta)
        return Dense(delta / scale), scale.double()
    power = scale_for(_largest(deltas))
    scale = torch.tensor(power, dtype=torch.float64)
    if deltas.base is not None:
        return DeltaProducts(deltas, deltas.base, power), scale
    return Dense(deltas.weight if power == 1 else deltas.weight / power), scale


def _largest(deltas: Deltas) -> float:
    """The largest magnitude of an entry, NaN if one is, on a CPU, where threads that help (see
    `each_piece`) share out rows."""
    found = [0.0]

    def look(rows: slice) -> None:
        found.append(largest_magnitude(deltas.of_rows(rows)))

    each_piece(look, row_pieces(deltas.shape, chunk_values(deltas.device)))
    return float(torch.tensor(found).max())

"""How much an error in each entry of a weight costs: the curvature of KL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ders_core.codecs.fitting.once import OfTheLast
from ders_core.compute.magnitude import scale_of
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.later import torch

DAMPING = 0.005
"""Added to each input's correlation with itself before all are scaled to 1 there: no direction is
free, however many tokens were read."""


@dataclass(frozen=True)
class Curvature:
    """C_ij = rows_i · columns_j / Σ columns: an independent error E of one expert's weight costs
    ½ Σ C_ij E_ij², in nats per token of the text that was measured.

    columns: float32 `[in]`, the mean over tokens of x_j²·‖g‖². rows: float32 `[out]`, of g_i²·‖x‖²,
    where x enters the weight and g is the gradient of log p (a label drawn from the model) after
    it. Both have the same sum: the marginals of Σ_t x_tj² g_ti², which are exact; their product is
    its best approximation by a matrix of rank 1 that keeps them (as in Adafactor, arXiv
    1804.04235).
    """

    columns: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def sum(cls, curvatures: Sequence[Curvature]) -> Curvature:
        """Of an error that several weights share, if they were independent of each other."""
        columns, rows = (
            torch.stack([getattr(each, kind) for each in curvatures]).double().sum(0).float()
            for kind in ("columns", "rows")
        )
        return cls(columns, rows)

    @property
    def total(self) -> float:
        """Σ_ij C_ij."""
        return float(self.rows.double().sum())

    def of_rows(self, pieces: Sequence[slice]) -> Curvature:
        """The curvature of some rows alone: their C_ij stay."""
        chosen, total = torch.cat([self.rows[piece] for piece in pieces]), self.total
        share = float(chosen.double().sum()) / total if total else 0.0
        return Curvature(self.columns * share, chosen)

    def cost(self, error: torch.Tensor, moments: torch.Tensor | None = None) -> float:
        """What an error `[out, in]` on any device costs, in float64.

        moments: E[x xᵀ] `[in, in]` of the inputs, symmetric. With them it is
        ½ Σ_i rows_i / Σ columns · E_i M E_iᵀ, with M = D^½ R D^½ of columns D and the damped
        correlation R of inputs: errors that hang together along a row may cost more or less than
        independent ones, which cost ½ Σ C_ij E_ij².
        """
        return self.products(error, [error], moments)[0] / 2

    def products(
        self,
        matrix: torch.Tensor,
        others: Sequence[torch.Tensor],
        moments: torch.Tensor | None = None,
    ) -> tuple[float, ...]:
        """The inner products of a matrix `[out, in]` with others of its shape, on one device, in
        float64: that with itself is twice what `cost` says. moments: as of `cost`."""
        total, device = self.total, matrix.device
        if not total:
            return (0.0,) * len(others)
        columns, rows = self.columns.to(device).double(), self.rows.to(device).double()
        sums = [0.0] * len(others)
        if moments is None or moments.dim() == 1:
            for piece in _pieces(matrix):
                left = matrix[piece].double()
                for place, other in enumerate(others):
                    part = (left * other[piece].double()) @ columns
                    sums[place] += float(part @ rows[piece])
        else:
            related, root = correlation_of(moments).to(device), columns.sqrt().float()
            weighed = [_Weighed(each, root) for each in others]
            first = _Weighed(matrix, root)
            for piece in _pieces(matrix):
                left = first.of(piece) @ related
                for place, scaled in enumerate(weighed):
                    part = (left * scaled.of(piece)).sum(1).double()
                    sums[place] += float(part @ rows[piece])
        return tuple(each / total for each in sums)


class _Weighed:
    """A matrix times the roots of its columns' curvature, a piece at a time, in float32."""

    def __init__(self, matrix: torch.Tensor, root: torch.Tensor) -> None:
        self._matrix, self._scale = matrix, scale_of(matrix)
        self._root = root * self._scale

    def of(self, piece: slice) -> torch.Tensor:
        return (self._matrix[piece].float() / self._scale).mul_(self._root)


def _pieces(error: torch.Tensor) -> Iterator[slice]:
    return row_pieces(error.shape, chunk_values(error.device))


def _correlation(moments: torch.Tensor) -> torch.Tensor:
    powers = moments.diagonal().double()
    inverse = torch.where(powers > 0, powers, math.inf).rsqrt()
    correlation = (moments * (inverse / (1 + DAMPING))).mul_(inverse[:, None]).float()
    correlation.fill_diagonal_(1.0)
    return correlation


correlation_of = OfTheLast(_correlation)
"""E[x_i x_j] / √(E[x_i²] E[x_j²]) `[n, n]` float32, damped, and 1 on the diagonal; what never
occurs hangs together with nothing. Of E[x xᵀ] float32, symmetric, which must not be written to as
long as it lives."""

"""How much an error in each entry of a weight costs: the curvature of KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.later import torch


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

    def cost(self, error: torch.Tensor) -> float:
        """½ Σ C_ij E_ij² of an error `[out, in]` on any device, in float64."""
        total = self.total
        if not total:
            return 0.0
        columns = self.columns.to(error.device).double()
        rows, summed = self.rows.to(error.device).double(), 0.0
        for piece in row_pieces(error.shape, chunk_values(error.device)):
            weighed = error[piece].double().square() @ columns
            summed += float(weighed @ rows[piece])
        return summed / total / 2

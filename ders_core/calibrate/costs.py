"""Sums of what errors in one group's weights cost, added up product by product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ders_core.calibrate.banks import Bank
from ders_core.calibrate.trouble import Trouble
from ders_core.calibrate.weighted_sums import WeightedSums
from ders_core.errors import EvaluationError
from ders_core.pipeline.sensitivity import COLUMNS, ROWS, SHRINKAGE


@dataclass(kw_only=True)
class Marginals:
    """Sums over tokens t with inputs x_t and gradients g_t of one group's experts.

    key: layer and projection. columns: Σ x_tj²·‖g_t‖² `[experts, in]`. rows: Σ g_ti²·‖x_t‖²
    `[experts, out]`. Both float64, on the model's device. calls: the products to which a gradient
    came back.
    """

    key: tuple[int, str]
    columns: torch.Tensor
    rows: torch.Tensor
    calls: int = 0

    @classmethod
    def zeros(cls, key: tuple[int, str], weights: Bank) -> Marginals:
        """weights: `[out, in]` of each expert."""
        columns, rows = _marginals(weights)
        return cls(key=key, columns=columns, rows=rows)

    def enter(self, part: int, rows: slice, x: torch.Tensor, source: torch.Tensor) -> None:
        """Nothing is added up of inputs alone."""

    def add(
        self, part: int, rows: slice, window: int, x: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Add an expert's tokens. part: the expert."""
        self.calls += 1
        x_squared, squared = x.float().square(), gradient.float().square()
        self.columns[part] += squared.sum(1) @ x_squared
        self.rows[part, rows] += x_squared.sum(1) @ squared

    def refuse(self, trouble: Trouble, part: int) -> None:
        """Raise EvaluationError."""
        words = {
            Trouble.AT_ONCE: "multiplies every token with all experts at once",
            Trouble.ANOTHER_FORM: (
                "multiplies with its experts' weights in another form than they have"
            ),
        }.get(trouble, f"computes expert {part} in other ways than by products of its inputs")
        raise EvaluationError(
            f"layer {self.key[0]}, {self.key[1]}: the model {words}, so what each expert costs "
            "cannot be told apart; calibrate without gradients"
        )


@dataclass(kw_only=True)
class Costs(Marginals):
    """And what shrinkage costs.

    shrinkage: Σ g_t·(Δ_k x_t) of each window `[windows, routed experts]`, with Δ_k = W_k − mean;
    float64. weights: `[out, in]` of each expert, the routed ones first. mean: of the routed ones,
    float32. weighted: second moments of the routed experts' inputs, shared by all projections that
    have these.
    """

    weights: Bank
    mean: torch.Tensor
    shrinkage: torch.Tensor
    weighted: WeightedSums

    @classmethod
    def empty(
        cls, key: tuple[int, str], weights: Bank, routed: int, windows: int, weighted: WeightedSums
    ) -> Costs:
        mean = torch.zeros_like(weights[0], dtype=torch.float32)
        for weight in weights[:routed]:
            mean += weight
        columns, rows = _marginals(weights)
        return cls(
            key=key,
            columns=columns,
            rows=rows,
            weights=weights,
            mean=mean / routed,
            shrinkage=_zeros(weights, windows, routed),
            weighted=weighted,
        )

    def add(
        self, part: int, rows: slice, window: int, x: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        super().add(part, rows, window, x, gradient)
        if part < self.shrinkage.shape[1]:
            delta = self.weights[part][rows].float() - self.mean[rows]
            self.shrinkage[window, part] += (x.float() @ delta.T * gradient.float()).sum()
            self.weighted.add(part, x, gradient)

    def tensors(self, tokens: int) -> dict[str, torch.Tensor]:
        """By their kinds in a calibration file, float32, on the CPU. tokens: of all windows."""
        columns, rows = self.columns / tokens, self.rows / tokens
        sums = {COLUMNS: columns, ROWS: rows, SHRINKAGE: self.shrinkage}
        return {kind: tensor.float().cpu() for kind, tensor in sums.items()}


def _marginals(weights: Bank) -> tuple[torch.Tensor, torch.Tensor]:
    """Of columns and of rows."""
    out, width = weights[0].shape
    return _zeros(weights, len(weights), width), _zeros(weights, len(weights), out)


def _zeros(weights: Bank, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=weights[0].device)

"""How much an error in each entry of a weight costs: the curvature of KL."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.fitting.once import OfTheLast
from ders_core.compute.magnitude import scale_of
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.compute.sent import sent
from ders_core.compute.symmetric import half_product, values_at_once
from ders_core.compute.tensor_scale import tensor_scale_of
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
    it; both on the CPU. They have the same sum: the marginals of Σ_t x_tj² g_ti², which are exact;
    their product is its best approximation by a matrix of rank 1 that keeps them (as in Adafactor,
    arXiv 1804.04235).
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

    @cached_property
    def total(self) -> float:
        """Σ_ij C_ij."""
        return float(self.rows.double().sum())

    @cached_property
    def column_roots(self) -> tuple[torch.Tensor, float]:
        """√ of the columns, float32 `[in]`, over a scale; and that."""
        root = self.columns.double().sqrt().float()
        scale = scale_of(root)
        return root / scale, scale

    def of_rows(self, pieces: Sequence[slice]) -> Curvature:
        """The curvature of some rows alone: their C_ij stay."""
        chosen, total = torch.cat([self.rows[piece] for piece in pieces]), self.total
        share = float(chosen.double().sum()) / total if total else 0.0
        return Curvature(self.columns * share, chosen)

    def cost(self, error: torch.Tensor, moments: torch.Tensor | None = None) -> torch.Tensor:
        """What an error `[out, in]` on any device costs: float64 `[]` there, which nothing waits
        for.

        moments: E[x xᵀ] `[in, in]` of the inputs, symmetric. With them it is
        ½ Σ_i rows_i / Σ columns · E_i M E_iᵀ, with M = D^½ R D^½ of columns D and the damped
        correlation R of inputs: errors that hang together along a row may cost more or less than
        independent ones, which cost ½ Σ C_ij E_ij².
        """

        def read(rows: slice, weigh: Weigh) -> Sequence[Weighed]:
            return [weigh(error[rows])]

        return self.inner_products(read, 1, error.device, moments)[0, 0] / 2

    def inner_products(
        self,
        read: Callable[[slice, Weigh], Sequence[Weighed]],
        count: int,
        device: torch.device,
        moments: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Those of each two of some matrices `[out, in]`, float64 `[count, count]` on their device,
        which nothing waits for: that of one with itself is twice what `cost` says. moments: as of
        `cost`.

        read: some rows of each matrix, on the device, weighed by the function that it is given.
        """
        sums = torch.zeros(count, count, dtype=torch.float64, device=device)
        total = self.total
        if not total:
            return sums
        metric = self._metric(moments, device)
        shape = (len(self.rows), len(self.columns))
        rows = sent(self.rows, device).double()
        for piece in row_pieces(shape, metric.values(shape)):
            weighed = read(piece, metric.weigh)
            for one, other in _pairs(count):
                left, right = weighed[one], weighed[other]
                product = metric.products(left, right)
                part = (product @ rows[piece]) * left.scale * right.scale
                sums[one, other] += part / total
                sums[other, one] = sums[one, other]
        return sums

    def squares(self, stack: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
        """The inner product of each matrix of a stack `[n, out, in]` float32 on a CPU with itself,
        float64 `[n]`. moments: as of `cost`."""
        sums = torch.zeros(len(stack), dtype=torch.float64)
        for weighed, metric, rows in self._weighed(stack, moments):
            sums += metric.products(weighed, weighed) @ rows * weighed.scale.square()
        return sums

    def squares_and_last(self, stack: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
        """`squares`, and the inner product of each with the last one: float64 `[2, n]`."""
        sums = torch.zeros(2, len(stack), dtype=torch.float64)
        for weighed, metric, rows in self._weighed(stack, moments):
            found = [metric.products(weighed, other) for other in (weighed, weighed.last)]
            sums += torch.stack(found) @ rows * weighed.scale.square()
        return sums

    def _weighed(
        self, stack: torch.Tensor, moments: torch.Tensor | None
    ) -> Iterator[tuple[Weighed, _Metric, torch.Tensor]]:
        """Some rows of each matrix of a stack, by what, and what these rows weigh."""
        count, out, width = stack.shape
        if not self.total:
            return
        metric, rows = self._metric(moments, stack.device), self.rows.double() / self.total
        for piece in row_pieces((out, width), metric.values((out, width)) // count):
            some = stack[:, piece]
            weighed = metric.weigh(some.reshape(-1, width))
            yield weighed.viewed(some.shape), metric, rows[piece]

    def _metric(self, moments: torch.Tensor | None, device: torch.device) -> _Metric:
        if moments is None or moments.dim() == 1:
            return _Apart.of(self, device)
        return _Related.of(self, moments, device)


@dataclass(frozen=True)
class Weighed:
    """Some rows of a matrix as a curvature weighs them, for products with others. scale: what they
    were divided by, float64 `[]`. rows, half: `[..., rows, in]`; half of their product with the
    metric (`half_product`), or the rows again where columns are independent."""

    scale: torch.Tensor
    rows: torch.Tensor
    half: torch.Tensor

    def viewed(self, shape: Sequence[int]) -> Weighed:
        """Of several matrices of a shape `[n, rows, in]`, whose rows these are."""
        return Weighed(self.scale, self.rows.view(shape), self.half.view(shape))

    @property
    def last(self) -> Weighed:
        """Of the last one of several matrices."""
        return Weighed(self.scale, self.rows[-1], self.half[-1])


Weigh = Callable[["torch.Tensor"], Weighed]
"""Of some rows `[rows, in]` of a matrix."""


class _Metric(ABC):
    """Of the columns of a row."""

    @abstractmethod
    def values(self, shape: tuple[int, int]) -> int:
        """How many values of a matrix of this shape are multiplied at a time."""

    @abstractmethod
    def weigh(self, matrix: torch.Tensor) -> Weighed:
        """matrix: some rows, `[rows, in]`."""

    @abstractmethod
    def products(self, one: Weighed, other: Weighed) -> torch.Tensor:
        """Of each row of the one with the same of the other, float64 `[..., rows]`."""


@dataclass(frozen=True)
class _Apart(_Metric):
    """Errors of columns that are independent. weights: float64 `[in]`."""

    weights: torch.Tensor

    @classmethod
    def of(cls, curvature: Curvature, device: torch.device) -> _Apart:
        return cls(sent(curvature.columns, device).double())

    def values(self, shape: tuple[int, int]) -> int:
        return chunk_values(self.weights.device)

    def weigh(self, matrix: torch.Tensor) -> Weighed:
        exact = matrix.double()
        return Weighed(self.weights.new_ones(()), exact, exact)

    def products(self, one: Weighed, other: Weighed) -> torch.Tensor:
        return (one.rows * other.rows) @ self.weights


@dataclass(frozen=True)
class _Related(_Metric):
    """Of inputs that hang together. correlation: `[in, in]`. root: of the columns' curvature, over
    `scale`; float32 `[in]`."""

    correlation: torch.Tensor
    root: torch.Tensor
    scale: float

    @classmethod
    def of(cls, curvature: Curvature, moments: torch.Tensor, device: torch.device) -> _Related:
        root, scale = curvature.column_roots
        return cls(correlation_of(moments).to(device), sent(root, device), scale)

    def values(self, shape: tuple[int, int]) -> int:
        return values_at_once(shape, self.root.device)

    def weigh(self, matrix: torch.Tensor) -> Weighed:
        scale = tensor_scale_of(matrix)
        rows = (matrix.float() / scale).mul_(self.root)
        return Weighed(scale.double() * self.scale, rows, half_product(rows, self.correlation))

    def products(self, one: Weighed, other: Weighed) -> torch.Tensor:
        if one is other:
            return (one.half * one.rows).sum(-1).double()
        here, there = one.half * other.rows, other.half * one.rows
        return (here.sum(-1).double() + there.sum(-1).double()) / 2


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((one, other) for one in range(count) for other in range(one, count))


def _correlation(moments: torch.Tensor) -> torch.Tensor:
    powers = moments.diagonal().double()
    inverse = torch.where(powers > 0, powers, math.inf).rsqrt()
    correlation = torch.empty_like(moments)
    for rows in row_pieces(moments.shape, chunk_values(moments.device)):
        correlation[rows] = (moments[rows] * (inverse / (1 + DAMPING))).mul_(inverse[rows, None])
    correlation.fill_diagonal_(1.0)
    return correlation


correlation_of = OfTheLast(_correlation)
"""E[x_i x_j] / √(E[x_i²] E[x_j²]) `[n, n]` float32, damped, and 1 on the diagonal; what never
occurs hangs together with nothing. Of E[x xᵀ] float32, symmetric, which must not be written to as
long as it lives."""

"""Similarity of experts and deltas, norms, moments, energy map, and the histogram of a group.

Rows come in chunks; everything is taken from vectors centred on the base, in float32, and summed in
float64. 1 − cos is never computed as 1 − G_ij/√(G_ii·G_jj): with a and b a hair apart, that loses
all its digits. The Gram matrix of the deltas is multiplied in float64 too: where experts fall into
clusters, two of them can be a hair apart and both far from the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ders_core.checkpoint import ExpertGroup
from ders_core.clusters import row_chunks

BINS = 128
REACH = 8.0
"""The histogram spans ± so many standard deviations; what lies beyond is in the outermost bins."""


@dataclass(frozen=True)
class GroupStatistics:
    """Float64 arrays; K experts, base = their mean in storage dtype.

    one_minus_cos, cos_delta: `[K, K]`. norm, norm_delta, mean, std, kurtosis (excess), max_abs:
    `[K]`, the last four of the delta's values. edges `[BINS + 1]`, counts `[BINS]` of all deltas.
    row_energy, column_energy: share of Σ Δ² in up to BINS equal bins.
    """

    norm_base: float
    norm: np.ndarray
    norm_delta: np.ndarray
    one_minus_cos: np.ndarray
    cos_delta: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    kurtosis: np.ndarray
    max_abs: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    row_energy: np.ndarray
    column_energy: np.ndarray


def group_statistics(group: ExpertGroup, device: torch.device | str = "cpu") -> GroupStatistics:
    """Read a group a few rows at a time, and again for the histogram, whose span is of the whole.

    Raises CheckpointError for non-finite weights.
    """
    totals = _Totals(*group.shape)
    for rows, weights, base in _chunks(group, device):
        totals.add(weights, base, rows)
    half = REACH * totals.spread()
    counts = torch.zeros(BINS, dtype=torch.int64)
    if half:
        for _, weights, base in _chunks(group, device):
            place = weights.sub_(base).mul_(BINS / 2 / half).add_(BINS / 2).floor_()
            places = place.clamp_(0, BINS - 1).to(torch.int32).flatten()
            counts += torch.bincount(places, minlength=BINS).cpu()
    return totals.finish(half or 1.0, counts)


def _chunks(
    group: ExpertGroup, device: torch.device | str
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(rows, weights `[K, rows·in]`, base `[rows·in]`), both float32, the base as it is stored."""
    for rows, weights in row_chunks(group, device):
        base = weights.mean(0).to(group.dtype).float()  # [rows·in]
        yield rows, weights, base


class _Totals:
    """Running sums in float64."""

    def __init__(self, experts: int, out: int, width: int) -> None:
        self.out, self.width, self.size = out, width, out * width
        self.gram = torch.zeros(experts, experts, dtype=torch.float64)
        self.weight = torch.zeros(experts, dtype=torch.float64)
        self.along = torch.zeros(experts, dtype=torch.float64)
        self.base = 0.0
        self.powers = torch.zeros(4, experts, dtype=torch.float64)
        self.max_abs = torch.zeros(experts, dtype=torch.float64)
        self.rows = torch.zeros(out, dtype=torch.float64)
        self.columns = torch.zeros(width, dtype=torch.float64)

    def add(self, weights: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        deltas = weights - base
        exact = deltas.double()
        self.gram += (exact @ exact.T).cpu()
        self.weight += weights.square().sum(1, dtype=torch.float64).cpu()
        self.along += (deltas * base).sum(1, dtype=torch.float64).cpu()
        self.base += float(base.square().sum(dtype=torch.float64))
        squares = deltas.square()
        for power, values in enumerate((deltas, squares, squares * deltas, squares * squares)):
            self.powers[power] += values.sum(1, dtype=torch.float64).cpu()
        self.max_abs = torch.maximum(self.max_abs, deltas.abs().amax(1).double().cpu())
        energy = squares.sum(0).view(-1, self.width).double().cpu()
        self.rows[rows] = energy.sum(1)
        self.columns += energy.sum(0)

    def spread(self) -> float:
        """Standard deviation of the values of all deltas together."""
        first, second = (self.powers[:2].mean(1) / max(self.size, 1)).tolist()
        return math.sqrt(max(second - first**2, 0.0))

    def finish(self, half: float, counts: torch.Tensor) -> GroupStatistics:
        gram = self.gram.numpy()
        own = np.diag(gram)
        norm = np.sqrt(self.weight.numpy())
        along = self.along.numpy()
        apart = np.maximum(own[:, None] + own[None, :] - 2 * gram, 0.0)  # ‖a−b‖²
        # ‖a‖² − ‖b‖² = 2·base·(d_a − d_b) + ‖d_a‖² − ‖d_b‖²
        squares = 2 * (along[:, None] - along[None, :]) + own[:, None] - own[None, :]
        sums = norm[:, None] + norm[None, :]
        longer = np.divide(squares, sums, out=np.zeros_like(squares), where=sums > 0)
        product = 2 * norm[:, None] * norm[None, :]
        angle = np.maximum(apart - longer**2, 0.0)
        one_minus_cos = np.divide(angle, product, out=np.zeros_like(angle), where=product > 0)
        np.fill_diagonal(one_minus_cos, 0.0)
        norm_delta = np.sqrt(own)
        lengths = norm_delta[:, None] * norm_delta[None, :]
        cos_delta = np.divide(gram, lengths, out=np.zeros_like(gram), where=lengths > 0)
        cos_delta = np.clip(cos_delta, -1.0, 1.0)
        first, second, third, fourth = self.powers.numpy() / max(self.size, 1)
        variance = np.maximum(second - first**2, 0.0)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        kurtosis = np.divide(
            central, variance**2, out=np.full_like(central, 3.0), where=variance > 0
        )
        return GroupStatistics(
            norm_base=float(np.sqrt(self.base)),
            norm=norm,
            norm_delta=norm_delta,
            one_minus_cos=one_minus_cos,
            cos_delta=cos_delta,
            mean=first,
            std=np.sqrt(variance),
            kurtosis=kurtosis - 3.0,
            max_abs=self.max_abs.numpy(),
            edges=np.linspace(-half, half, BINS + 1),
            counts=counts.numpy(),
            row_energy=_binned(self.rows.numpy()),
            column_energy=_binned(self.columns.numpy()),
        )


def _binned(energy: np.ndarray) -> np.ndarray:
    """Shares of the total in at most BINS bins of (nearly) equal width."""
    bins = min(BINS, energy.size)
    sums = np.array([part.sum() for part in np.array_split(energy, bins)])
    total = sums.sum()
    return sums / total if total > 0 else np.zeros_like(sums)

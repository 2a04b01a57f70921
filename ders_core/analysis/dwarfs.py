"""Norms and cosines of experts that are far smaller than the others: dead ones, above all.

Such an expert's delta is nearly the base itself, so that its norm and its cosines, as they follow
from deltas, are differences of large numbers that are nearly equal. They are computed from the
weights, in float64; the group is read once more for that, which few groups need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.streaming import slabs
from ders_core.compute.brought import bring_together
from ders_core.compute.pieces import chunk_values
from ders_core.compute.sent import sent
from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.analysis.similarity import GroupStatistics

DWARF = 1e-2
"""An expert with a smaller norm than this share of the largest one's. Above, the norm that follows
from deltas is right to about 1e−3 of itself, and 1 − cos to about 1e−5."""

CHUNK_VALUES = 1 << 18
"""Of all experts, in float64 at a time, on the CPU."""


def corrected(
    statistics: GroupStatistics, group: ExpertGroup, device: torch.device
) -> GroupStatistics:
    """The statistics with the norms and `one_minus_cos` of dwarfs from their weights.

    A cosine with an expert of zeros is 0.
    """
    largest = float(statistics.norm.max(initial=0.0))
    dwarfs = np.flatnonzero(statistics.norm < DWARF * largest)
    if not dwarfs.size:
        return statistics
    squares, products = _products(group, dwarfs, device)
    norm = statistics.norm.copy()
    norm[dwarfs] = np.sqrt(squares[dwarfs])
    lengths = np.sqrt(squares[dwarfs])[:, None] * np.sqrt(squares)[None, :]
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    one_minus_cos = statistics.one_minus_cos.copy()
    one_minus_cos[dwarfs] = 1.0 - np.clip(cosines, -1.0, 1.0)
    one_minus_cos[:, dwarfs] = one_minus_cos[dwarfs].T
    np.fill_diagonal(one_minus_cos, 0.0)
    return replace(statistics, norm=norm, one_minus_cos=one_minus_cos)


def _products(
    group: ExpertGroup, dwarfs: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """(‖W_i‖² `[K]`, ⟨W_d, W_i⟩ of each dwarf d with every expert `[dwarfs, K]`), in float64."""
    experts, _, width = group.shape
    step = max(1, chunk_values(device, CHUNK_VALUES) // max(experts * width, 1))
    squares = torch.zeros(experts, dtype=torch.float64, device=device)
    products = torch.zeros(len(dwarfs), experts, dtype=torch.float64, device=device)
    chosen = sent(torch.from_numpy(dwarfs), device)
    for _, weights in slabs(group, device):
        for part in weights.split(step, 1):
            values = part.flatten(1).double()
            squares += values.square().sum(1)
            products += values[chosen] @ values.T
    squares, products = bring_together([squares, products])
    return squares.numpy(), products.numpy()

"""The rank that keeps a share of the energy of all deltas of a group together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ders_core.codecs.fitting.directions import EXACT_BELOW
from ders_core.codecs.fitting.thin_factors import unit_of
from ders_core.compute.eigen import eigenvalues_of_each
from ders_core.compute.together import batches
from ders_core.later import torch


def rank_that_keeps(share: float, deltas: Iterable[torch.Tensor]) -> int:
    """The smallest rank, at least 1, that keeps this share of Σσ² of all deltas `[out, in]` of one
    shape; of zeros alone 1. A GPU is waited for once for many of them."""
    pooled: torch.Tensor | None = None
    total: torch.Tensor | None = None  # not that of `pooled`: noise of small values adds up
    for squares, energy in _spectra(deltas):
        pooled = squares if pooled is None else pooled + squares
        total = energy if total is None else total + energy
    if pooled is None or total is None:
        return 1
    target = share * total * (1 - 1e-12)
    place = int(torch.searchsorted(pooled.cumsum(0), target))
    return max(min(place + 1, pooled.numel()), 1)


def _spectra(deltas: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """σ² of each delta, descending, and their sum; float64."""
    for some in batches(deltas, _held):
        grams, scales = zip(*map(_gram_of, some), strict=True)
        some.clear()
        for gram, scale, values in zip(grams, scales, eigenvalues_of_each(grams), strict=True):
            yield values * scale**2, gram.trace() * scale**2


def _held(delta: torch.Tensor) -> int:
    """Bytes of a delta, and of its products, which solvers copy."""
    return delta.nbytes + 3 * 8 * min(delta.shape) ** 2


def _gram_of(delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The products of its shorter side over a scale, float64; and that."""
    thin = delta if delta.shape[0] <= delta.shape[1] else delta.T
    unit, scale = unit_of(thin)
    precise = unit.double() if thin.shape[0] <= EXACT_BELOW else unit
    return (precise @ precise.T).double(), scale

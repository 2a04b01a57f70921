"""The scale of each block of values, by its squared error and not by the largest value alone.

Blocks are first brought to a largest magnitude of 1, so that no square over- or underflows. Sums
are `halved_sum`s, so that no processor finds other scales; compiled loops give the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ders_core.codecs.fitting.levels import Levels
from ders_core.compute import kernels
from ders_core.compute.sums import halved_sum
from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.compute.kernels.scales import Search

SPREADS = (0.95,)
"""Multiples of what is best for a Gaussian of the block's variance that are tried."""

SHRINKS = (1.0, 0.8, 0.6, 0.45)
"""Shares of the block's largest magnitude that are tried as the outermost level."""

NEARS = (1.07, 0.94, 1.03)
"""Multiples of the best scale so far that are tried in the end."""

TINY = 1e-30

LEAST_POWER = 1e-3
"""Of the sums that p in `_fitted` is a difference of. If it is less, float32 does not tell it."""


def best_scales(values: torch.Tensor, weights: torch.Tensor | None, levels: Levels) -> torch.Tensor:
    """The scale s of each block with the least Σ w·(v − s·L[q])², `[blocks]` float32.

    values: `[..., size]` float32. weights: broadcastable to it, 0 for padding; None for 1. Scales
    are tried by what they make of the values: from the nearest levels follow the best scale for
    these, and its error. The first of equals is taken.
    """
    size = values.shape[-1]
    blocks = values.reshape(-1, size)
    if (heights := weights_of_blocks(weights, values)) is not None and kernels.takes(
        blocks, heights
    ):
        return _compiled_scales(blocks, heights, levels).view(values.shape[:-1])
    heavy = None if weights is None else weights.expand_as(values).reshape(-1, size)
    largest = (blocks if heavy is None else blocks * (heavy > 0)).abs().amax(-1)
    unit = blocks / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)
    total = _summed(torch.ones_like(unit[:1]), heavy).clamp_min(TINY)
    if levels.count == 2:  # one magnitude: its weighted mean (XNOR-Net 2016, BitDelta)
        best = _summed(unit.abs(), heavy) / total * largest / levels.outermost
        return best.view(values.shape[:-1])
    if levels.uniform:  # around zero
        unit = unit.abs()
    energy = _summed(unit.square(), heavy)
    power = (energy / total).double()  # roots in float32 are the machine's
    spread = power.sqrt().float() * _gaussian_scale(levels)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for number in range(len(SPREADS) + len(SHRINKS) + len(NEARS)):
        after = number - len(SPREADS)
        if after < 0:
            scale = spread * SPREADS[number]
        elif after < len(SHRINKS):
            share = (SHRINKS[after] / levels.outermost).float()  # on the CPU, if levels are
            scale = torch.ones_like(largest) * share
        else:
            scale = best * NEARS[after - len(SHRINKS)]
        fitted, error = _fitted(unit, heavy, levels, scale, energy)
        better = error < least
        best, least = torch.where(better, fitted, best), torch.where(better, error, least)
    return (best * largest).view(values.shape[:-1])


def weights_of_blocks(weights: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor | None:
    """Weights as `[m, size]`, of block i those in row i mod m, `[0, size]` where all are 1; None if
    that cannot be said."""
    size = values.shape[-1]
    if weights is None:
        return values.new_empty(0, size)
    if weights.dim() != values.dim() or weights.shape[0] != 1 or weights.shape[-1] != size:
        return None
    if weights.numel() == size:
        return weights.reshape(1, size)
    return weights.expand(1, *values.shape[1:]).reshape(-1, size).contiguous()


def _compiled_scales(blocks: torch.Tensor, weights: torch.Tensor, levels: Levels) -> torch.Tensor:
    """As `best_scales`. blocks: `[n, size]`. weights: as of `weights_of_blocks`."""
    from ders_core.compute.kernels.scales import best_scales as search

    scales = torch.empty(len(blocks), dtype=torch.float32)
    search(blocks.numpy(), weights.numpy(), *search_arguments(levels), scales.numpy())
    return scales


def search_arguments(levels: Levels) -> Search:
    """What `compute.kernels.scales.best_scales` takes besides blocks, weights and scales."""
    return (
        *levels.arrays,
        levels.rough,
        np.array(SPREADS, dtype=np.float32),
        np.array([share / levels.reach for share in SHRINKS], dtype=np.float32),
        np.array(NEARS, dtype=np.float32),
        np.float32(_gaussian_scale(levels) if levels.count > 2 else 1.0),
        np.float32(levels.reach),
        np.float32(TINY),
        np.float32(LEAST_POWER),
    )


def _summed(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return halved_sum(values if weights is None else values * weights)


def _fitted(
    unit: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    scale: torch.Tensor,
    energy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scale of each block for the levels L that are nearest with the scale s that is
    tried, and its error, `[blocks]`: s(1 + c/p) and s²(Σ w·e² − c²/p), where e = u/s − L, c = Σ
    w·e·L and p = Σ w·L².

    unit: `[blocks, size]`; magnitudes where levels are 1 apart. energy: Σ w·u², from which p
    follows. Where that is too small for float32, the scale stays as it is: nearly all that weighs
    is at level 0, or far beyond the outermost one.
    """
    inverse = 1 / torch.where(scale > TINY, scale, 1.0)
    error, level = _snapped(unit * inverse.unsqueeze(-1), levels)
    squares, shared = _summed(error.square(), weights), _summed(error * level, weights)
    whole = energy * inverse * inverse
    power = whole - (shared + shared) - squares
    is_known = power > LEAST_POWER * (whole + squares)
    move = torch.where(is_known, shared / torch.where(is_known, power, 1.0), 0.0)
    left = (squares - shared * move).clamp_min(0)
    return scale * (1 + move).clamp_min(0), scale.square() * left


def _snapped(ratios: torch.Tensor, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
    """(what ratios are above the nearest levels, those levels)."""
    if not levels.uniform:
        level = levels.snap_roughly_(ratios.clone())
        return ratios.sub_(level), level
    middle = levels.count // 2
    lowest = float(levels.table[middle])
    above = ratios.sub_(lowest)
    nearest = above.round().clamp_max_(levels.count - 1 - middle)
    return above.sub_(nearest), nearest.add_(lowest)


def _gaussian_scale(levels: Levels) -> float:
    """The best scale for a Gaussian of variance 1: levels that are not uniform are made for one."""
    return _gaussian_step(levels.count) if levels.uniform else 1.0


@cache
def _gaussian_step(count: int) -> float:
    """The step with the least squared error for `count` uniform levels and a Gaussian of variance 1
    (Max 1960, table II), to 1 / 64."""
    from scipy.special import ndtri

    at = ndtri((np.arange(4096) + 0.5) / 4096)
    half = (count - 1) / 2
    steps = np.arange(1, 256) / 64
    codes = np.clip(np.round(at / steps[:, None] + half), 0, count - 1) - half
    return float(steps[((at - codes * steps[:, None]) ** 2).mean(1).argmin()])

"""The scale of each block of values, by its squared error and not by the largest value alone.

Blocks are first brought to a largest magnitude of 1, so that no square over- or underflows. Sums
are `halved_sum`s, so that no processor finds other scales; compiled loops give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from ders_core.codecs.fitting.levels import Levels
from ders_core.compute import kernels
from ders_core.compute.sums import halved_sum
from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.compute.kernels.scales import Search

SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the group's largest magnitude that are tried as the outermost level."""

SPREADS = (0.7, 1.0, 1.3)
"""Multiples of what is best for a Gaussian of the group's variance that are tried."""

REFINEMENTS = 2
FEW = 1 << 13
"""Values for which all candidates are tried at once."""

TINY = 1e-30
CAUTION = 1e-3
"""Share by which a bound is loosened, far above what sums in float32 are off by."""


def best_scales(values: torch.Tensor, weights: torch.Tensor | None, levels: Levels) -> torch.Tensor:
    """The scale s of each block with the least Σ w·(v − s·L[q])², `[blocks]` float32.

    values: `[..., size]` float32. weights: broadcastable to it, 0 for padding; None for 1. The
    candidates are shrunken ranges and multiples of the spread, the first of equals is taken; the
    best one is refined by least squares.
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
        best = _summed(unit.abs(), heavy) / total * largest / levels.reach
        return best.view(values.shape[:-1])
    power = (_summed(unit.square(), heavy) / total).double()  # roots in float32 are the machine's
    spread = power.sqrt().float() * _gaussian_scale(levels)
    candidates = [torch.full_like(largest, share / levels.reach) for share in SHRINKS]
    candidates += [spread * share for share in SPREADS]
    choose = _best_at_once if unit.numel() <= FEW else _best_in_turn
    best, least = choose(unit, heavy, levels, candidates)
    return (_refined(unit, heavy, levels, best, least) * largest).view(values.shape[:-1])


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
        np.array([share / levels.reach for share in SHRINKS], dtype=np.float32),
        np.array(SPREADS, dtype=np.float32),
        np.float32(_gaussian_scale(levels) if levels.count > 2 else 1.0),
        np.float32(levels.reach),
        np.float32(CAUTION),
        np.float32(TINY),
        REFINEMENTS,
    )


def _best_at_once(
    unit: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    candidates: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_best_in_turn`, in one pass: a call of torch costs more than few values do."""
    scales = torch.stack(list(candidates))  # [n, blocks]
    errors = _squares(unit.expand(len(scales), *unit.shape), weights, levels, scales)
    least, first = errors.min(0)
    return scales.gather(0, first.unsqueeze(0)).squeeze(0), least


def _best_in_turn(
    unit: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    candidates: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first candidate with the least error, and that error, of each block `[blocks]`."""
    spreads = len(candidates) - len(SPREADS)
    best, least = candidates[-2], torch.full_like(candidates[0], torch.inf)
    first = torch.full_like(least, len(candidates))
    for number in (*range(spreads, len(candidates)), *range(spreads)):
        scale = candidates[number]
        error = _error(unit, weights, levels, scale, least)
        better = (error < least) | ((error == least) & (number < first))
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
        first = torch.where(better, float(number), first)
    return best, least


def _summed(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return halved_sum(values if weights is None else values * weights)


def _error(
    unit: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    scale: torch.Tensor,
    least: torch.Tensor,
) -> torch.Tensor:
    """Σ w·(u − s·L[q])² of each block `[blocks]`; infinity where it is certainly above `least`.

    unit: `[blocks, size]` with a largest magnitude of 1, which bounds the error from below where
    the outermost level does not reach it.
    """
    if weights is not None:
        return _squares(unit, weights, levels, scale)
    short = (1 - CAUTION - levels.reach * scale).clamp_min(0)
    open_ = (short.square() * (1 - CAUTION) <= least).nonzero().flatten()
    if 4 * open_.numel() > 3 * least.numel():  # picking that many out costs more than it saves
        return _squares(unit, None, levels, scale)
    squares = _squares(unit.index_select(0, open_), None, levels, scale.index_select(0, open_))
    return torch.full_like(least, torch.inf).index_copy_(0, open_, squares)


def _squares(
    unit: torch.Tensor, weights: torch.Tensor | None, levels: Levels, scale: torch.Tensor
) -> torch.Tensor:
    level = _level(unit, levels, scale).mul_(scale.unsqueeze(-1))
    return _summed(torch.sub(unit, level, out=level).square_(), weights)


def _refined(
    unit: torch.Tensor,
    weights: torch.Tensor | None,
    levels: Levels,
    best: torch.Tensor,
    least: torch.Tensor,
) -> torch.Tensor:
    """`best` after steps of least squares for fixed codes, as long as they make `least` less."""
    best, values, active = best.clone(), unit, weights
    level = _level(unit, levels, best)
    rows = torch.arange(len(unit), device=unit.device)
    for _ in range(REFINEMENTS):
        weighed = level if active is None else level * active
        power = halved_sum(level * weighed).clamp_min(TINY)
        scale = halved_sum(values * weighed).div(power).clamp_min_(0)
        level = _level(values, levels, scale)
        lost = level * scale.unsqueeze(-1)
        error = _summed(torch.sub(values, lost, out=lost).square_(), active)
        better = (error < least).nonzero().flatten()  # what did not change would not change now
        rows, least = rows[better], error[better]
        best.index_copy_(0, rows, scale[better])
        values, level = values.index_select(0, better), level.index_select(0, better)
        active = None if active is None else active.index_select(0, better)
    return best


def best_lines(
    values: torch.Tensor, weights: torch.Tensor | None, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s and offset z of each block with the least Σ w·(v − z − s·q)², q = 0 … n − 1.

    As `best_scales`, for values that are not centred on zero.
    """
    if weights is None:
        weights = values.new_ones((1,) * (values.dim() - 1) + values.shape[-1:])
    blocks = values.reshape(-1, values.shape[-1])
    if (heights := weights_of_blocks(weights, values)) is not None and kernels.takes(
        blocks, heights
    ):
        scales, offsets = _compiled_lines(blocks, heights, levels)
        return scales.view(values.shape[:-1]), offsets.view(values.shape[:-1])
    real = (weights > 0).expand_as(values)
    low = values.masked_fill(~real, torch.inf).amin(-1)
    width = values.masked_fill(~real, -torch.inf).amax(-1) - low
    safe = torch.where(width > 0, width, 1.0)
    unit = (values - low.unsqueeze(-1)) / safe.unsqueeze(-1)  # 0 … 1
    total = halved_sum(weights.expand_as(values)).clamp_min(TINY)
    middle = halved_sum(unit * weights) / total

    def snapped(scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        step = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
        return levels.snap_((unit - offset.unsqueeze(-1)) / step)

    slope, shift = torch.full_like(low, 1 / levels.reach), torch.zeros_like(low)
    least = torch.full_like(low, torch.inf)
    for number in range(len(SHRINKS) + REFINEMENTS):
        if number < len(SHRINKS):
            kept = SHRINKS[number]
            tried = torch.full_like(low, kept / levels.reach), torch.full_like(low, (1 - kept) / 2)
        else:
            level = snapped(slope, shift)
            centre = halved_sum(level * weights) / total
            apart = (level - centre.unsqueeze(-1)) * weights
            power = halved_sum(apart * level).clamp_min(TINY)
            fitted = (halved_sum(apart * (unit - middle.unsqueeze(-1))) / power).clamp_min(0)
            tried = fitted, middle - fitted * centre
        level = snapped(*tried)
        ahead = level * tried[0].unsqueeze(-1) + tried[1].unsqueeze(-1)
        error = halved_sum((unit - ahead).square_() * weights)
        better = error < least
        slope, shift = torch.where(better, tried[0], slope), torch.where(better, tried[1], shift)
        least = torch.where(better, error, least)
    return slope * width, low + shift * width


def _compiled_lines(
    blocks: torch.Tensor, weights: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `best_lines`. blocks: `[n, size]`. weights: as of `weights_of_blocks`."""
    from ders_core.compute.kernels.lines import best_lines as search

    scales, offsets = torch.empty(2, len(blocks), dtype=torch.float32)
    search(
        blocks.numpy(),
        weights.numpy(),
        levels.table.numpy(),
        np.array([share / levels.reach for share in SHRINKS], dtype=np.float32),
        np.array([(1 - share) / 2 for share in SHRINKS], dtype=np.float32),
        np.float32(TINY),
        REFINEMENTS,
        scales.numpy(),
        offsets.numpy(),
    )
    return scales, offsets


def _level(values: torch.Tensor, levels: Levels, scale: torch.Tensor) -> torch.Tensor:
    inverse = 1 / torch.where(scale > TINY, scale, 1.0)
    return levels.snap_roughly_(values * inverse.unsqueeze(-1))


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

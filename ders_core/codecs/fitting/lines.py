"""The scale and offset of each block of values that are not centred on zero.

As `scales.py`: blocks are first brought to values from 0 to 1, sums are `halved_sum`s, and compiled
loops give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.scales import TINY, weights_of_blocks
from ders_core.compute import kernels
from ders_core.compute.sums import halved_sum
from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.compute.kernels.lines import LineSearch

SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the block's width that are tried as that of all levels."""

REFINEMENTS = 2


def best_lines(
    values: torch.Tensor, weights: torch.Tensor | None, levels: Levels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s and offset z of each block with the least Σ w·(v − z − s·q)², q = 0 … n − 1.

    As `best_scales`, for values that are not centred on zero.
    """
    blocks = values.reshape(-1, values.shape[-1])
    if (heights := weights_of_blocks(weights, values)) is not None and kernels.takes(
        blocks, heights
    ):
        scales, offsets = _compiled_lines(blocks, heights, levels)
        return scales.view(values.shape[:-1]), offsets.view(values.shape[:-1])
    if weights is None:
        weights = values.new_ones((1,) * (values.dim() - 1) + values.shape[-1:])
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
        *line_arguments(levels),
        scales.numpy(),
        offsets.numpy(),
    )
    return scales, offsets


def line_arguments(levels: Levels) -> LineSearch:
    """What `compute.kernels.lines.best_lines` takes besides blocks, weights, scales and offsets."""
    return (
        levels.table.numpy(),
        np.array([share / levels.reach for share in SHRINKS], dtype=np.float32),
        np.array([(1 - share) / 2 for share in SHRINKS], dtype=np.float32),
        np.float32(TINY),
        REFINEMENTS,
    )

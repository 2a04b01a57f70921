"""The search for scales, against the same search without any shortcut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.fitting import scales
from ders_core.codecs.fitting.levels import Levels, normal, ternary, uniform
from ders_core.compute.sums import halved_sum

LEVELS = [uniform(4), uniform(16), uniform(256), ternary(), normal(3)]


def plain(values: torch.Tensor, weights: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Every candidate is tried on every group, in order; the first of the best is refined."""

    def level(scale: torch.Tensor) -> torch.Tensor:
        safe = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
        return levels.at(levels.nearest(unit / safe))

    largest = (values * (weights > 0)).abs().amax(-1)
    unit = values / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)
    total = halved_sum(weights.expand_as(values)).clamp_min(scales.TINY)
    mean = halved_sum(unit.square() * weights) / total
    spread = mean.double().sqrt().float() * scales._gaussian_scale(levels)
    tried = [torch.full_like(largest, share / levels.reach) for share in scales.SHRINKS]
    tried += [spread * share for share in scales.SPREADS]
    best, least = tried[0], torch.full_like(largest, torch.inf)
    for number in range(len(tried) + scales.REFINEMENTS):
        if number < len(tried):
            scale = tried[number]
        else:
            heavy = level(best) * weights
            power = halved_sum(level(best) * heavy).clamp_min(scales.TINY)
            scale = (halved_sum(unit * heavy) / power).clamp_min(0)
        error = halved_sum((unit - level(scale) * scale.unsqueeze(-1)).square() * weights)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best * largest


def groups(seed: int, count: int, size: int, kind: str) -> torch.Tensor:
    """`[count, size]`: values as they come, on a coarse grid (many equal errors), with outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, size, generator=generator) * 1e-3
    if kind == "grid":
        return (values * 2e3).round() / 1024
    if kind == "outliers":
        return values * torch.randn(count, size, generator=generator).exp().square()
    return values * (torch.rand(count, 1, generator=generator) > 0.3)  # some are all zeros


@pytest.mark.parametrize("levels", LEVELS, ids=lambda levels: str(levels.count))
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    size=st.sampled_from([1, 2, 5, 32, 128]),
    kind=st.sampled_from(["zeros", "grid", "outliers"]),
    weighed=st.booleans(),
)
def test_what_is_left_out_would_not_have_won(
    levels: Levels, seed: int, count: int, size: int, kind: str, weighed: bool
) -> None:
    values = groups(seed, count, size, kind)
    weights = torch.ones(1, size)
    if weighed:
        weights = torch.rand(1, size, generator=torch.Generator().manual_seed(seed)) + 1e-3
    best = scales.best_scales(values, weights if weighed else None, levels)
    assert torch.equal(best, plain(values, weights, levels))

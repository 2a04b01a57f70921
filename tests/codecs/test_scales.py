"""The search for scales, against brute force in float64 and against a search of more candidates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs.fitting import scales
from ders_core.codecs.fitting.levels import Levels, normal, ternary, uniform

LEVELS = [uniform(4), uniform(8), uniform(16), uniform(256), ternary(), normal(3)]
SHRINKS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
SPREADS = (0.7, 1.0, 1.3)
REFINEMENTS = 2
KINDS = ("usual", "grid", "heavy tails", "outliers", "even", "sparse")
WITH_ZERO = Levels(torch.tensor([-1.0, 0.0, 0.0, 1.0]), uniform=False)


def nearest(ratios: torch.Tensor, levels: Levels) -> torch.Tensor:
    """The level nearest to each ratio, float64."""
    table = levels.table.double()
    return table[torch.bucketize(ratios, (table[1:] + table[:-1]) / 2)]


def errors(
    values: torch.Tensor, scale: torch.Tensor, levels: Levels, weights: torch.Tensor
) -> torch.Tensor:
    """Σ w·(v − s·L)² of each block, float64; all of it where the scale is 0."""
    exact, step = values.double(), scale.double().unsqueeze(-1)
    level = nearest(exact / torch.where(step > 0, step, 1.0), levels)
    return ((exact - step * level).square() * weights).sum(-1)


def thorough(values: torch.Tensor, levels: Levels, weights: torch.Tensor) -> torch.Tensor:
    """The error of the best of ten scales, after two steps of least squares for fixed levels, as
    long as they make it less: float64 `[blocks]`."""
    exact = values.double()
    largest = exact.abs().amax(-1)
    mean = (exact.square() * weights).sum(-1) / weights.sum()
    spread = mean.sqrt() * scales._gaussian_scale(levels)
    tried = [largest * share / levels.reach for share in SHRINKS]
    tried += [spread * share for share in SPREADS]
    best, least = tried[0], torch.full_like(largest, torch.inf)
    for number in range(len(tried) + REFINEMENTS):
        if number < len(tried):
            scale = tried[number]
        else:
            level = nearest(exact / torch.where(best > 0, best, 1.0).unsqueeze(-1), levels)
            power = (level.square() * weights).sum(-1).clamp_min(1e-30)
            scale = ((exact * level * weights).sum(-1) / power).clamp_min(0)
        error = errors(values, scale, levels, weights)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return least


def blocks(kind: str, count: int, size: int, seed: int) -> torch.Tensor:
    """`[count, size]`, of several magnitudes."""
    values = gauss((count, size), seed, 1.0)
    chance = torch.rand(count, size, generator=torch.Generator().manual_seed(seed))
    if kind == "grid":  # as differences of weights in 16 bits
        return (values * 4).round() / 1024
    if kind == "heavy tails":  # Laplace
        return torch.log1p(-chance) * values.sign() * 1e-3
    if kind == "outliers":
        return values * gauss((count, size), seed + 1, 1.0).exp().square()
    if kind == "even":
        return chance - 0.5
    if kind == "sparse":
        return values * (chance < 0.1)
    return values * gauss((count, 1), seed + 1, 1.0).exp()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", LEVELS, ids=lambda levels: str(levels.count))
def test_fewer_scales_are_tried_and_none_of_the_error_is_paid_for_it(
    levels: Levels, kind: str
) -> None:
    """Over all blocks of a kind, each by its own energy, to a thousandth."""
    for size in (32, 128):
        values = blocks(kind, 256, size, levels.count)
        even = torch.ones(1, size, dtype=torch.float64)
        energy = values.double().square().sum(-1).clamp_min(1e-30)
        found = errors(values, scales.best_scales(values, None, levels), levels, even) / energy
        wanted = thorough(values, levels, even) / energy
        assert float(found.sum()) <= 1.001 * float(wanted.sum())


@pytest.mark.parametrize("levels", LEVELS, ids=lambda levels: str(levels.count))
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 5, 32, 128, 700]),
    kind=st.sampled_from(KINDS),
    weighed=st.booleans(),
)
def test_what_a_scale_that_is_tried_makes_of_a_block(
    levels: Levels, seed: int, size: int, kind: str, weighed: bool
) -> None:
    """The best scale for the levels that it gives, and the error of that, in float64."""
    values = blocks(kind, 9, size, seed)
    unit = values / values.abs().amax(-1, keepdim=True).clamp_min(1e-20)
    unit = unit.abs() if levels.uniform else unit
    scale = (gauss((9,), seed + 2, 1.0).abs() + 0.3) / levels.reach
    weights = gauss((1, size), seed + 3, 1.0).abs() + 0.1 if weighed else torch.ones(1, size)
    exact, heavy = unit.double(), weights.double()
    energy = (exact.square() * heavy).sum(-1)
    fitted, error = scales._fitted(
        unit, weights if weighed else None, levels, scale, energy.float()
    )
    level = nearest((unit / scale.unsqueeze(-1)).double(), levels)
    power = (level.square() * heavy).sum(-1)
    fitting = (exact * level * heavy).sum(-1) / power
    ratios = (unit / scale.unsqueeze(-1)).double()
    whole = ((ratios.square() + (ratios - level).square()) * heavy).sum(-1)
    best = torch.where(power > scales.LEAST_POWER * whole, fitting, scale.double())
    left = ((exact - best.unsqueeze(-1) * level).square() * heavy).sum(-1)
    # halfway between two levels float32 may choose the other one, which is as near
    halfway = 1e-5 * energy + 1e-12
    assert torch.allclose(error.double(), left, rtol=1e-3, atol=float(halfway.max()))
    assert torch.allclose(fitted.double(), best, rtol=1e-3, atol=1e-6)  # 0 of zeros


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "levels", [*LEVELS, WITH_ZERO], ids=lambda levels: f"{levels.count}-{levels.uniform}"
)
def test_weights_of_any_size(levels: Levels, kind: str) -> None:
    """From 1e-6 to 1e3. Scales in float16 are no worse than those of largest magnitudes."""
    for size in (32, 100, 128):
        values = blocks(kind, 256, size, levels.count)
        values /= values.abs().amax(-1, keepdim=True).clamp_min(1e-20)
        chance = torch.rand(1, size, generator=torch.Generator().manual_seed(size))
        weights = 10.0 ** (9 * chance - 6)
        heavy = weights.double()
        found = scales.best_scales(values, weights, levels).half()
        plain = (values.abs().amax(-1) / levels.reach).half()
        energy = (values.double().square() * heavy).sum(-1)
        limit = 1.001 * errors(values, plain, levels, heavy) + 1e-6 * energy
        assert (errors(values, found, levels, heavy) <= limit).all()


@pytest.mark.parametrize("size", [100, 128])
def test_a_level_on_a_column_of_hardly_any_weight(size: int) -> None:
    """If the largest magnitude is there, a scale by which all else is 0 has no error by mistake."""
    values, weights = torch.full((3, size), 0.375), torch.full((1, size), 4.0)
    values[:, -1], weights[:, -1] = 1.0, 1e-6
    heavy = weights.double()
    for levels in (ternary(), WITH_ZERO):
        found = scales.best_scales(values, weights, levels)
        error = errors(values, found, levels, heavy)
        assert (error <= 1.001 * thorough(values, levels, heavy)).all()

"""Similarity, norms, moments and histograms against brute force in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises_saying

from ders_core.analysis.similarity import REACH, group_statistics
from ders_core.checkpoint import ExpertGroup
from ders_core.errors import CheckpointError

MakeGroup = Callable[[torch.Tensor], ExpertGroup]


def exact_one_minus_cos(weights: torch.Tensor) -> np.ndarray:
    """In extended precision, through the angle's half: 1 − cos = 2·sin²(θ/2) = ‖û − v̂‖²/2."""
    flat = weights.flatten(1).double().numpy().astype(np.longdouble)
    unit = flat / np.sqrt((flat**2).sum(1, keepdims=True))
    apart = unit[:, None] - unit[None, :]
    one_minus_cos: np.ndarray = ((apart**2).sum(-1) / 2).astype(np.float64)
    return one_minus_cos


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    closeness=st.sampled_from([1e-4, 1e-3, 1e-2, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    out=st.integers(1, 40),
    width=st.integers(2, 60),
)
def test_one_minus_cos_keeps_its_digits(
    group_of: MakeGroup,
    seed: int,
    closeness: float,
    dtype: torch.dtype,
    out: int,
    width: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(out, width, generator=random)
    weights = base + closeness * torch.randn(5, out, width, generator=random)
    weights = weights.to(dtype)
    statistics = group_statistics(group_of(weights))
    wanted = exact_one_minus_cos(weights)
    # products of deltas and the base are float32: a part of the deltas' own share is rounding
    share = (statistics.norm_delta.max() / statistics.norm.min()) ** 2
    rounding = share * torch.finfo(torch.float32).eps
    np.testing.assert_allclose(statistics.one_minus_cos, wanted, rtol=2e-3, atol=rounding)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    gap=st.sampled_from([0.1, 0.5, 1.0]),
    closeness=st.sampled_from([1e-4, 3e-4, 1e-3]),
)
def test_one_minus_cos_keeps_its_digits_within_clusters(
    group_of: MakeGroup, seed: int, gap: float, closeness: float
) -> None:
    """Experts far from the mean and a hair from each other: what is apart is lost in float32."""
    random = torch.Generator().manual_seed(seed)
    starts = torch.randn(64, 96, generator=random) + gap * torch.randn(2, 64, 96, generator=random)
    weights = starts[[0, 1, 0, 1, 0]] + closeness * torch.randn(5, 64, 96, generator=random)
    statistics = group_statistics(group_of(weights))
    np.testing.assert_allclose(statistics.one_minus_cos, exact_one_minus_cos(weights), rtol=1e-3)


@pytest.mark.parametrize("first", [0.0, 0.001, 0.5])
def test_histogram_spans_the_whole_group_whatever_comes_first(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    """The first chunk's deltas are zero, or smaller or larger than all that follow."""
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 3 * 20 * 4)
    torch.manual_seed(5)
    spread = torch.full((40, 1), 0.05)
    spread[:4] = first
    weights = torch.randn(40, 20) + spread * torch.randn(3, 40, 20)
    statistics = group_statistics(group_of(weights))
    deltas = (weights - weights.mean(0)).double().numpy()
    assert statistics.edges[-1] == pytest.approx(REACH * deltas.std(), rel=1e-4)
    counts = np.histogram(
        np.clip(deltas, statistics.edges[0], statistics.edges[-1]), statistics.edges
    )[0]
    assert statistics.counts.sum() == deltas.size
    assert np.abs(statistics.counts - counts).sum() <= 4  # values that lie on an edge


def test_norms_moments_and_histogram_are_those_of_float64(group_of: MakeGroup) -> None:
    torch.manual_seed(3)
    weights = (torch.randn(30, 50) + 0.05 * torch.randn(4, 30, 50)).bfloat16()
    statistics = group_statistics(group_of(weights))
    base = weights.float().mean(0).bfloat16().double()
    deltas = (weights.double() - base).flatten(1).numpy()
    np.testing.assert_allclose(statistics.norm_base, base.norm(), rtol=1e-6)
    np.testing.assert_allclose(statistics.norm, weights.double().flatten(1).norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(statistics.norm_delta, np.linalg.norm(deltas, axis=1), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, deltas.std(1), rtol=1e-5)
    np.testing.assert_allclose(statistics.max_abs, np.abs(deltas).max(1), rtol=1e-6)
    unit = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
    np.testing.assert_allclose(statistics.cos_delta, unit @ unit.T, atol=1e-5)
    centred = deltas - deltas.mean(1, keepdims=True)
    kurtosis = (centred**4).mean(1) / (centred**2).mean(1) ** 2 - 3
    np.testing.assert_allclose(statistics.kurtosis, kurtosis, atol=1e-4)
    counts = np.histogram(
        np.clip(deltas, statistics.edges[0], statistics.edges[-1]), statistics.edges
    )[0]
    assert statistics.counts.sum() == deltas.size
    assert np.abs(statistics.counts - counts).sum() <= 4  # values that lie on an edge
    energy = (deltas**2).reshape(4, 30, 50).sum(0)
    np.testing.assert_allclose(statistics.row_energy, energy.sum(1) / energy.sum(), rtol=1e-5)
    np.testing.assert_allclose(statistics.column_energy, energy.sum(0) / energy.sum(), rtol=1e-5)


def test_chunks_do_not_change_the_result(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    weights = torch.randn(37, 20) + 0.01 * torch.randn(3, 37, 20)
    group = group_of(weights)
    whole = group_statistics(group)
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 3 * 20 * 5)
    pieces = group_statistics(group)
    np.testing.assert_allclose(pieces.one_minus_cos, whole.one_minus_cos, rtol=1e-5)
    np.testing.assert_allclose(pieces.norm_delta, whole.norm_delta, rtol=1e-6)
    np.testing.assert_allclose(pieces.row_energy, whole.row_energy, rtol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_experts_without_deltas_give_numbers(group_of: MakeGroup, experts: int) -> None:
    weights = torch.ones(8, 6).expand(experts, 8, 6).contiguous()
    statistics = group_statistics(group_of(weights))
    assert not statistics.one_minus_cos.any()
    assert not statistics.cos_delta.any()
    assert np.isfinite(statistics.kurtosis).all()


def test_a_value_that_is_not_finite_is_named(group_of: MakeGroup) -> None:
    weights = torch.ones(3, 4, 4)
    weights[2, 1, 1] = torch.nan
    with raises_saying(CheckpointError, "experts.2.w1", "not finite"):
        group_statistics(group_of(weights))

"""Compiled loops for bases and errors against the same in plain torch, bit by bit."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.decompose.averages import mean_of, median_of
from ders_core.decompose.distortion import Squares, compare, is_finite

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def experts(seed: int, count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """`[count, 3, width]`: of all sizes, with equal values and zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 3, width, generator=generator)
    values *= torch.randn(count, 3, width, generator=generator).mul(2).exp()
    values[:, 0, : width // 3] = torch.tensor([0.0, -0.0, 1.0, 1.0]).repeat(count)[:count, None]
    return values.to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 9),
    width=st.sampled_from([0, 1, 7, 256, 1000, 1500]),
)
def test_averages_and_errors(dtype: torch.dtype, seed: int, count: int, width: int) -> None:
    part = experts(seed, count, width, dtype)
    weights = np.random.default_rng(seed).random(count).tolist()
    first, second, third = part[0], part[-1], part[count // 2]

    def work() -> tuple[list[torch.Tensor], list[Squares], bool]:
        averages = mean_of(part, None, count), mean_of(part, weights, sum(weights)), median_of(part)
        errors = [compare(first, second, third), compare(first, second)]
        return [bits(average.to(dtype)) for average in averages], errors, is_finite(part)

    averages, errors, finite = work()
    with patch("ders_core.compute.kernels._installed", return_value=False):
        averages_plainly, errors_plainly, finite_plainly = work()
    assert all(map(torch.equal, averages, averages_plainly))
    assert errors == errors_plainly
    assert finite == finite_plainly


@pytest.mark.parametrize("plain", [False, True])
def test_errors_are_those_of_float64(plain: bool) -> None:
    """Within 1e-13, by sums that lose nothing (`math.fsum` of exact products is one rounding)."""
    ours, theirs, base = experts(3, 3, 1501, torch.bfloat16).double().numpy()
    error, delta = ours - theirs, theirs - base
    wanted = [float((a * b).sum()) for a, b in ((error, error), (delta, delta), (theirs, theirs))]
    tensors = experts(3, 3, 1501, torch.bfloat16)
    with patch("ders_core.compute.kernels._installed", return_value=not plain):
        found = compare(tensors[0], tensors[1], tensors[2])
        alone = compare(tensors[0], tensors[1])
    assert [found.error, found.delta, found.weight] == pytest.approx(wanted, rel=1e-13)
    assert found.shared == pytest.approx(float((error * delta).sum()), rel=1e-12)
    assert alone == Squares(found.error, 0.0, found.weight, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen(dtype: torch.dtype, value: float) -> None:
    part = experts(1, 3, 500, dtype)
    assert is_finite(part)
    largest = torch.full_like(part, torch.finfo(dtype).max)
    assert is_finite(largest)
    part[1, 2, 499] = value
    assert not is_finite(part)
    assert not is_finite(part.transpose(0, 1))
    if value != value:
        assert median_of(part).isnan().nonzero().tolist() == [[2, 499]]
        assert mean_of(part, None, 3).isnan().nonzero().tolist() == [[2, 499]]


def test_the_median_of_both_zeros_has_no_sign() -> None:
    part = torch.tensor([0.0, -0.0, -0.0]).view(3, 1, 1).bfloat16()
    assert not bool(median_of(part).signbit().any())
    with patch("ders_core.compute.kernels._installed", return_value=False):
        assert not bool(median_of(part).signbit().any())

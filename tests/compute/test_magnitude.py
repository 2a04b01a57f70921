"""Errors and analyses of weights far from 1 are those of float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ders_core.compute.magnitude import scale_for, scale_of, unit_rows
from ders_core.compute.tensor_scale import scale_from_bits, tensor_scale_of
from ders_core.decompose.distortion import compare, output_squared

FAR = [1e-37, 1e-25, 1e-12, 1.0, 1e12, 1e25, 1e36]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", FAR)
def test_errors_are_those_of_float64(size: float, dtype: torch.dtype) -> None:
    weight = (noise(40, 70) * size).to(dtype)
    synthesized = (weight.float() * (1 + 0.01 * noise(40, 70, seed=1))).to(dtype)
    base = (weight.float() * (1 + 0.1 * noise(40, 70, seed=2))).to(dtype)
    w, s, b = (tensor.double().numpy() for tensor in (weight, synthesized, base))
    squares = compare(synthesized, weight, base)
    assert squares.error == pytest.approx(float(((s - w) ** 2).sum()), rel=1e-10)
    assert squares.delta == pytest.approx(float(((w - b) ** 2).sum()), rel=1e-10)
    assert squares.weight == pytest.approx(float((w**2).sum()), rel=1e-10)
    against_delta, against_weight = squares.relative
    assert against_delta == pytest.approx(float(np.linalg.norm(s - w) / np.linalg.norm(w - b)))
    assert against_weight == pytest.approx(float(np.linalg.norm(s - w) / np.linalg.norm(w)))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("size", FAR)
def test_errors_of_outputs_are_those_of_float64(size: float, diagonal: bool) -> None:
    error, inputs = noise(12, 20) * size, noise(50, 20, seed=3)
    moments = inputs.T @ inputs / len(inputs)
    outputs = error.double() @ inputs.double().T
    wanted = float(outputs.square().sum(0).mean())
    if diagonal:
        moments = moments.diagonal()
        wanted = float((error.double().square() * moments.double()).sum())
    assert float(output_squared(error, moments)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-25, 1e-8, 0.3, 1.0, 1e8, 1e25, 3.4e38])
def test_a_scale_is_a_power_of_two_that_float32_holds(largest: float) -> None:
    scale = scale_for(largest)
    assert np.log2(scale) == round(np.log2(scale))
    assert 0 < float(np.float32(scale)) < np.inf
    assert 2.0**-25 <= largest / scale <= 2.0**25


@pytest.mark.parametrize("values", [[], [0.0, -0.0], [float("nan"), 1e30], [float("inf")]])
def test_what_has_no_magnitude_is_not_scaled(values: list[float]) -> None:
    assert scale_of(torch.tensor(values)) == 1.0


@given(st.lists(st.floats(width=32), max_size=3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_scale_is_the_same_as_a_tensor(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values).to(dtype)
    for scale in (tensor_scale_of(tensor), scale_from_bits(tensor)):
        assert scale.dtype == torch.float32
        assert float(scale) == scale_of(tensor)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 1e25])
def test_rows_of_any_length_become_units(size: float) -> None:
    rows = noise(5, 30) * size
    rows[2] = 0
    unit = unit_rows(rows)
    exact = rows.double().numpy()
    norms = np.linalg.norm(exact, axis=1, keepdims=True).clip(1e-300)
    np.testing.assert_allclose(unit.numpy(), exact / norms, rtol=1e-12)
    assert not unit[2].any()

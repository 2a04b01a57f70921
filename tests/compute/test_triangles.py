"""Triangular factors against numpy's inverse in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ders_core.compute import triangles


def definite(size: int, seed: int) -> torch.Tensor:
    """Positive definite, float64, its eigenvalues from 0.01 up."""
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, 2 * size)) * np.logspace(0, -1, size)[:, None]
    return torch.from_numpy(root @ root.T / (2 * size) + 0.01 * np.eye(size))


@given(
    size=st.integers(0, 40),
    columns=st.integers(1, 50),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_both_factors(size: int, columns: int, seed: int, dtype: torch.dtype) -> None:
    matrix = definite(size, seed)
    exact = matrix.numpy()
    rough = 1e-5 if dtype is torch.float32 else 1e-10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triangles, "COLUMNS", columns)
        root, inverse = (matrix.to(dtype, copy=True) for _ in range(2))
        triangles.factorize(root)
        triangles.inverse_factor(inverse)
    assert torch.equal(root, root.triu())
    assert torch.equal(inverse, inverse.triu())
    upper, inverted = root.double().numpy(), inverse.double().numpy()
    np.testing.assert_allclose(upper @ upper.T, exact, rtol=0, atol=rough)
    wanted = np.linalg.inv(exact)
    np.testing.assert_allclose(inverted.T @ inverted, wanted, rtol=0, atol=1000 * rough)


@given(size=st.integers(0, 40), columns=st.integers(1, 50), seed=st.integers(0, 1000))
def test_products_with_a_triangle(size: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lower, block = np.tril(random.normal(size=(size, size))), random.normal(size=(size, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triangles, "COLUMNS", columns)
        there, back = (
            product(torch.from_numpy(lower), torch.from_numpy(block)).numpy()
            for product in (triangles.times_lower, triangles.back_lower)
        )
    np.testing.assert_allclose(there, lower @ block, rtol=0, atol=1e-12)
    np.testing.assert_allclose(back, lower.T @ block, rtol=0, atol=1e-12)


def test_sums_are_in_float64() -> None:
    """Of 2000 columns that are nearly the same, where sums in float32 leave a negative diagonal."""
    nearly = torch.ones(2000, 2000) + 3e-6 * torch.eye(2000)
    exact = nearly.double()
    assert triangles.factorize(nearly)
    assert bool((nearly.diagonal() > 0).all())
    lost = nearly.double() @ nearly.double().mT - exact
    assert float(lost.abs().max()) < 2e-7


def test_what_is_not_positive_definite_is_said() -> None:
    matrix = definite(30, 0)
    matrix[3, 3] = -1
    assert not triangles.factorize(matrix)

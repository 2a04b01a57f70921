"""How much of a delta counts as given back, against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from ders_core.codecs.curvature import Curvature, correlation_of
from ders_core.decompose.distortion import compare
from ders_core.pipeline.effective_gain import Correlated, effective_gain

ROWS, WIDTH = 24, 40


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def moments() -> torch.Tensor:
    """Of inputs with two strong directions."""
    x = drawn(0, 500, WIDTH)
    x += 3 * drawn(1, 500, 2) @ drawn(2, 2, WIDTH)
    return x.T @ x / len(x)


@pytest.fixture
def curvature() -> Curvature:
    columns, rows = drawn(3, WIDTH).square(), drawn(4, ROWS).square()
    return Curvature(columns, rows * (columns.sum() / rows.sum()))


def strong_part(delta: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """What of a delta the two strongest directions of the inputs see."""
    directions: torch.Tensor = torch.linalg.eigh(moments)[1][:, -2:]
    return delta @ (directions @ directions.T)


def test_products_are_those_of_the_definition(moments: torch.Tensor, curvature: Curvature) -> None:
    """Σ_i rows_i / Σ columns · L_i D^½ R D^½ R_iᵀ."""
    left, right = drawn(5, ROWS, WIDTH) * 1e-3, drawn(6, ROWS, WIDTH)
    root = curvature.columns.double().sqrt()
    metric = root[:, None] * correlation_of(moments).double() * root
    wanted = [
        float(
            torch.einsum(
                "r,ri,ij,rj", curvature.rows.double(), left.double(), metric, each.double()
            )
        )
        / float(curvature.columns.double().sum())
        for each in (right, left)
    ]
    assert curvature.products(left, [right, left], moments) == pytest.approx(wanted, rel=1e-4)
    assert curvature.cost(left, moments) == pytest.approx(wanted[1] / 2, rel=1e-4)
    diagonal = moments.diagonal()
    weights = torch.outer(curvature.rows, curvature.columns).double() / curvature.total
    wanted = [float((weights * left * each).sum()) for each in (right, left)]
    assert curvature.products(left, [right, left], diagonal) == pytest.approx(wanted, rel=1e-6)


def test_a_plain_share_is_the_gain(moments: torch.Tensor, curvature: Curvature) -> None:
    delta = drawn(7, ROWS, WIDTH)
    correlated = Correlated.of(curvature, 0.7 * delta, delta, moments)
    squares = compare(0.7 * delta, delta, torch.zeros_like(delta))
    assert effective_gain(squares, correlated) == pytest.approx(0.7, rel=1e-5)


def test_what_inputs_see_counts_more(moments: torch.Tensor, curvature: Curvature) -> None:
    delta = drawn(8, ROWS, WIDTH)
    decoded = strong_part(delta, moments)
    correlated = Correlated.of(curvature, decoded, delta, moments)
    squares = compare(decoded, delta, torch.zeros_like(delta))
    seen = correlated.shared / correlated.energy
    assert squares.gain < 0.15 < 0.3 < seen
    assert effective_gain(squares, correlated) == pytest.approx(0.4 * squares.gain + 0.6 * seen)


def test_without_gradients_it_is_the_plain_one() -> None:
    delta = drawn(9, ROWS, WIDTH)
    squares = compare(0.4 * delta, delta, torch.zeros_like(delta))
    assert effective_gain(squares, Correlated()) == squares.gain


def test_sums_are_those_of_all_deltas(moments: torch.Tensor, curvature: Curvature) -> None:
    """The larger delta decides."""
    small, large = drawn(10, ROWS, WIDTH), 10 * drawn(11, ROWS, WIDTH)
    both = Correlated.of(curvature, small, small, moments)
    both += Correlated.of(curvature, 0.5 * large, large, moments)
    assert both.shared / both.energy == pytest.approx(0.5, abs=0.02)

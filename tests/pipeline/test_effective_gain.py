"""How much of a delta counts as given back, against its definition in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ders_core.codecs.curvature import Curvature, Weigh, Weighed, correlation_of
from ders_core.decompose.distortion import compare
from ders_core.pipeline.effective_gain import Correlated, effective_gain
from ders_core.pipeline.noise import Deviation

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


def products_of(
    curvature: Curvature, left: torch.Tensor, right: torch.Tensor, moments: torch.Tensor
) -> tuple[float, float]:
    """Of left with right, and with itself."""

    def read(rows: slice, weigh: Weigh) -> Sequence[Weighed]:
        return [weigh(left[rows]), weigh(right[rows])]

    sums = curvature.inner_products(read, 2, left.device, moments)
    assert sums[0, 1] == sums[1, 0]
    return float(sums[0, 1]), float(sums[0, 0])


def correlated_of(
    curvature: Curvature, decoded: torch.Tensor, delta: torch.Tensor, moments: torch.Tensor
) -> Correlated:
    deviation = Deviation(decoded, delta, torch.zeros_like(delta))
    gain = torch.ones((), dtype=torch.float64)
    return Correlated(*deviation.noise_sums(gain, curvature, moments).correlated.tolist())


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
    assert products_of(curvature, left, right, moments) == pytest.approx(wanted, rel=1e-4)
    assert float(curvature.cost(left, moments)) == pytest.approx(wanted[1] / 2, rel=1e-4)
    diagonal = moments.diagonal()
    weights = torch.outer(curvature.rows, curvature.columns).double() / curvature.total
    wanted = [float((weights * left * each).sum()) for each in (right, left)]
    assert products_of(curvature, left, right, diagonal) == pytest.approx(wanted, rel=1e-6)


def test_a_plain_share_is_the_gain(moments: torch.Tensor, curvature: Curvature) -> None:
    delta = drawn(7, ROWS, WIDTH)
    correlated = correlated_of(curvature, 0.7 * delta, delta, moments)
    squares = compare(0.7 * delta, delta, torch.zeros_like(delta))
    assert effective_gain(squares, correlated) == pytest.approx(0.7, rel=1e-5)


def test_what_inputs_see_counts_more(moments: torch.Tensor, curvature: Curvature) -> None:
    delta = drawn(8, ROWS, WIDTH)
    decoded = strong_part(delta, moments)
    correlated = correlated_of(curvature, decoded, delta, moments)
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
    both = correlated_of(curvature, small, small, moments)
    both += correlated_of(curvature, 0.5 * large, large, moments)
    assert both.shared / both.energy == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
@pytest.mark.parametrize("dims", [1, 2])
def test_what_noise_costs(
    moments: torch.Tensor, curvature: Curvature, share: float, dims: int
) -> None:
    """½ ‖Δ̂ − aΔ‖² by the metric, in float64, from sums and directly; a code that gives little of
    the delta back."""
    known = moments if dims == 2 else moments.diagonal()
    start, delta = drawn(12, ROWS, WIDTH), drawn(13, ROWS, WIDTH)
    decoded = share * delta + share**2 * drawn(14, ROWS, WIDTH)
    deviation = Deviation(start + decoded, start + delta, start)
    root = curvature.columns.double().sqrt()
    related = correlation_of(moments).double() if dims == 2 else torch.eye(WIDTH).double()
    noise = decoded.double() - share * delta.double()
    by_rows = torch.einsum("ri,ij,rj->r", noise * root, related, noise * root)
    wanted = float(by_rows @ curvature.rows.double()) / curvature.total / 2
    kept = torch.tensor(share, dtype=torch.float64)
    from_sums = deviation.noise_sums(1.01 * kept, curvature, known).cost(kept)
    assert float(from_sums) == pytest.approx(wanted, rel=1e-3)
    directly = deviation.noise_cost(kept, curvature, known)
    assert float(directly) == pytest.approx(wanted, rel=1e-4)

"""The strongest directions against singular values in float64; the metric of outputs."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss, inputs, second_moments

from ders_core.codecs.fitting.directions import OF_KEPT, OF_TAIL, STEPS, leading
from ders_core.codecs.fitting.metric import DAMPING, EXACT_BELOW, Weighed, metric_of
from ders_core.compute.krylov import Dense

SHAPE = (420, 360)


def with_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """`SHAPE`, with these singular values."""
    left, right = (torch.linalg.qr(gauss((side, SHAPE[1]), side, 1.0))[0] for side in SHAPE)
    matrix: torch.Tensor = (left * spectrum) @ right.T
    return matrix


NUMBERS = torch.arange(SHAPE[1]) + 1.0
MATRICES = {
    "a few above noise": lambda: (
        gauss(SHAPE, 1, 0.1) + gauss((SHAPE[0], 5), 2) @ gauss((5, 360), 3)
    ),
    "falling": lambda: with_spectrum(1 / NUMBERS),
    "nearly flat": lambda: with_spectrum(NUMBERS**-0.1),
    "a cliff": lambda: with_spectrum(torch.where(NUMBERS < 20, 1.0, 1e-3)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("turned", [False, True])
def test_directions_leave_no_more_than_is_stated(name: str, turned: bool) -> None:
    matrix, rank = MATRICES[name](), 24
    matrix = matrix.T.contiguous() if turned else matrix
    left, sigma, right = leading(Dense(matrix), rank, seed=7)
    squares = torch.linalg.svdvals(matrix.double()).square()
    kept, tail = float(squares[:rank].sum()), float(squares[rank:].sum())
    error = float((matrix.double() - (left * sigma).double() @ right.double()).square().sum())
    rounding = 1e-6 * kept
    assert error <= (1 + OF_TAIL) * tail + rounding
    assert error - tail <= OF_KEPT * kept + rounding


class Counted(Dense):
    """A matrix that counts its products with blocks."""

    products = 0

    def times(self, block: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return super().times(block)

    def back(self, block: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return super().back(block)


@pytest.mark.parametrize("turned", [False, True])
def test_the_space_grows_no_longer_than_its_accuracy_needs(turned: bool) -> None:
    """A step is a product with A and, but for the first one, another with Aᵀ. Three tell growth
    from its end."""
    products = {}
    for name in ("a cliff", "nearly flat"):
        matrix = MATRICES[name]()
        counted = Counted(matrix.T.contiguous() if turned else matrix)
        leading(counted, 24, seed=7)
        products[name] = counted.products
    assert products["a cliff"] == 2 * 3 - 1 < 2 * STEPS - 1
    assert 2 * 3 - 1 < products["nearly flat"] <= 2 * STEPS - 1


@pytest.mark.parametrize("turned", [False, True])
def test_weighed_directions_are_those_of_the_product(turned: bool) -> None:
    delta = MATRICES["a few above noise"]()
    delta = delta.T.contiguous() if turned else delta
    metric = metric_of(second_moments(inputs(delta.shape[1])))
    product = metric.weighed(delta)
    for by_operator, plain in zip(
        leading(Weighed(Dense(delta), metric), 6, seed=7),
        leading(Dense(product), 6, seed=7),
        strict=True,
    ):
        torch.testing.assert_close(by_operator, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(metric.plain(product), delta, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [40, EXACT_BELOW + 20])
def test_the_metric_is_that_of_damped_moments(width: int) -> None:
    moments = second_moments(inputs(width)) * 1e-3
    metric = metric_of(moments)
    factor = metric.factor.double() * metric.scale
    largest = torch.linalg.eigvalsh(moments.double())[-1]
    damped = moments.double() + DAMPING * largest * torch.eye(width)
    near = 0.02 * DAMPING * float(largest)  # of many inputs, the largest is estimated
    torch.testing.assert_close(factor @ factor.T, damped, rtol=1e-5, atol=near)
    diagonal = metric_of(moments.diagonal().contiguous())
    torch.testing.assert_close(
        diagonal.factor.double().square() * diagonal.scale**2,
        moments.diagonal().double() + DAMPING * moments.diagonal().max(),
        rtol=1e-5,
        atol=0.0,
    )

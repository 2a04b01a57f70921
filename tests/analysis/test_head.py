"""The largest singular values of matrices whose singular values are known: diagonal ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.counted_device import DEVICE, counted_waits

from ders_core.analysis import head
from ders_core.analysis.head import HEAD, PRODUCTS, heads
from ders_core.compute.orthonormal import ORTHOGONAL
from ders_core.compute.threads import IdleThreads, side_by_side, threads_of_torch

SHAPE = OUT, WIDTH = 1500, 700
NUMBERS = np.arange(1, WIDTH + 1)
ABOUT, STANDS_OUT = 0.012, 0.001


def noise() -> np.ndarray:
    """Singular values of a random matrix of SHAPE, by the law of Marchenko and Pastur; the largest
    is 1."""
    share = WIDTH / OUT
    least, most = (1 - share**0.5) ** 2, (1 + share**0.5) ** 2
    squares = np.linspace(least, most, 100_001)
    density = np.sqrt(np.maximum((most - squares) * (squares - least), 0)) / squares
    below = np.cumsum(density) / density.sum()
    values = np.sqrt(np.interp((NUMBERS - 0.5) / WIDTH, below, squares))[::-1]
    of_the_largest: np.ndarray = values / values[0]
    return of_the_largest


def with_strong(count: int, least: float, most: float) -> np.ndarray:
    """Noise, and so many values between two multiples of its largest one."""
    values = noise()
    values[:count] = np.linspace(most, least, count)
    return values


STANDING_OUT = {
    "16 far": with_strong(16, 9, 10.5),
    "16 that are equal": with_strong(16, 2, 2),
    "24": with_strong(24, 5, 5.5),
    "32": with_strong(32, 4, 6),
    "40": with_strong(40, 4, 6),
    "40 that are equal": with_strong(40, 4, 4),
    "falls as 1/k": 1.0 / NUMBERS,
    "falls as 1/k²": 1.0 / NUMBERS**2,
    "falls by half in 3": 0.8**NUMBERS,
    "rank 5": np.where(NUMBERS <= 5, 1.0, 0.0),
    "rank 40": np.where(NUMBERS <= 40, 1.0, 0.0),
    "all equal": np.ones(WIDTH),
}
HARDER = {
    "noise": noise(),
    "16 near": with_strong(16, 1.3, 1.3),
    "8 far": with_strong(8, 5, 5),
    "200": with_strong(200, 2, 4),
    "one giant": with_strong(1, 1000, 1000),
    "falls slowly": NUMBERS**-0.1,
    "falls": NUMBERS**-0.3,
    "falls straight": 1 - NUMBERS / (WIDTH + 1),
    "rank 300": np.where(NUMBERS <= 300, 1 - NUMBERS / 600, 0.0),
}


def matrix_of(sigma: np.ndarray) -> torch.Tensor:
    """`SHAPE` float32; places of the values are mixed."""
    matrix, random = torch.zeros(SHAPE), np.random.default_rng(2)
    rows, columns = random.permutation(OUT)[:WIDTH], random.permutation(WIDTH)
    matrix[rows, columns] = torch.from_numpy(sigma).float()
    return matrix


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("sigma", "share"),
    [(sigma, STANDS_OUT) for sigma in STANDING_OUT.values()]
    + [(sigma, ABOUT) for sigma in HARDER.values()],
    ids=[*STANDING_OUT, *HARDER],
)
def test_values_are_as_near_as_is_said(sigma: np.ndarray, share: float, turned: bool) -> None:
    matrix, wanted = matrix_of(sigma), sigma[:HEAD]
    (values,) = heads([matrix.T.contiguous() if turned else matrix])
    assert values.shape == (HEAD,)
    assert (values[1:] <= values[:-1]).all()
    rounding = ORTHOGONAL * wanted[0]
    assert (values - wanted).max() < rounding  # they come from below
    assert (wanted - values <= share * wanted + rounding).all()


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *(("rank 5", STANDS_OUT), ("falls by half in 3", STANDS_OUT), ("24", STANDS_OUT)),
        *(("noise", ABOUT), ("one giant", ABOUT)),
    ],
)
def test_a_device_is_not_asked_what_is_orthogonal(name: str, share: float) -> None:
    """Where rounding leaves nothing but itself, its vectors are zeros."""
    matrix, wanted = matrix_of((STANDING_OUT | HARDER)[name]), (STANDING_OUT | HARDER)[name][:HEAD]
    with counted_waits() as counted:
        (values,) = heads([matrix.to(DEVICE)])
    assert counted.total() <= PRODUCTS
    assert (values - wanted).max() < ORTHOGONAL * wanted[0]
    assert (wanted - values <= share * wanted + ORTHOGONAL * wanted[0]).all()


@pytest.mark.parametrize(
    ("name", "least", "most"), [("rank 5", 3, 3), ("16 far", 4, 4), ("noise", 8, PRODUCTS)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_more_products_are_made_only_where_they_are_needed(
    name: str, least: int, most: int, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a low rank, the third tells that the second had all: what rounding leaves of the others
    never settles."""
    made = list[str]()
    for product in ("with_rows", "with_columns"):
        multiply = getattr(head, product)

        def counted(
            matrix: torch.Tensor,
            block: torch.Tensor,
            idle: None,
            product: str = product,
            multiply: Callable[..., torch.Tensor] = multiply,
        ) -> torch.Tensor:
            made.append(product)
            return multiply(matrix, block, idle)

        monkeypatch.setattr(head, product, counted)
    matrix = matrix_of((STANDING_OUT | HARDER)[name])
    heads([matrix.T.contiguous() if turned else matrix])
    assert least <= len(made) <= most
    assert abs(made.count("with_rows") - made.count("with_columns")) <= 1


@pytest.mark.parametrize("values", [1, 30 * 33, 1 << 21])
def test_pieces_give_the_whole_product(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    matrix, block = torch.randn(100, 30, generator=random), torch.randn(7, 30, generator=random)
    exact, exact_block = matrix.double(), block.double()
    monkeypatch.setattr(head, "PIECE_VALUES", values)
    monkeypatch.setattr(head, "PIECE_COLUMNS", min(values, 40))
    rows = head.with_rows(matrix, block).double()
    columns = head.with_columns(matrix.T.contiguous(), block).double()
    wanted = exact_block @ exact.T
    torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(columns, wanted, rtol=0, atol=1e-5)


def test_values_are_the_same_with_any_help() -> None:
    """Three matrices and four threads: those without one help."""
    matrices = [matrix_of(HARDER[name]) for name in ("noise", "8 far", "falls")]
    matrices[1] = matrices[1].T.contiguous()
    with threads_of_torch(4), side_by_side(torch.device("cpu")) as pool:
        alone = [heads([matrix])[0] for matrix in matrices]
        idle = IdleThreads(pool, 3)
        for values, wanted in zip(
            pool.map(lambda matrix: heads([matrix], idle)[0], matrices), alone, strict=True
        ):
            np.testing.assert_array_equal(values, wanted)

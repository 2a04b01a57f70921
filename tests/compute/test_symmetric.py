"""Quadratic forms by half of a product, against einsum in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ders_core.compute import symmetric


@given(
    rows=st.integers(0, 5),
    width=st.integers(0, 30),
    columns=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_forms_are_those_of_the_whole_product(
    rows: int, width: int, columns: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(rows, width, generator=random) for _ in range(2))
    matrix = torch.randn(width, width, generator=random)
    matrix = matrix + matrix.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetric, "COLUMNS", columns)
        of_left, of_right = (symmetric.half_product(each, matrix) for each in (left, right))
    for one, other, found in (
        (left, left, of_left * left),
        (left, right, (of_left * right + of_right * left) / 2),
    ):
        wanted = torch.einsum("ri,ij,rj->r", one.double(), matrix.double(), other.double())
        torch.testing.assert_close(found.sum(1).double(), wanted, rtol=0, atol=2e-3)

"""Eigenvalues of many matrices with one wait, and the largest one with none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.codec_support import gauss
from support.counted_device import DEVICE, counted_waits

from ders_core.codecs import LowRank
from ders_core.compute import together
from ders_core.compute.eigen import eigen_of_each, eigenvalues_of_each, largest_eigenvalue
from ders_core.compute.together import batches, held_at_once


def products(size: int, rank: int, seed: int) -> torch.Tensor:
    factor = gauss((size, rank), seed, 1.0).double()
    return factor @ factor.T


def test_one_solver_is_asked_for_all() -> None:
    matrices = [products(20, rank, 3) for rank in (1, 7, 40)]
    with torch.inference_mode(), counted_waits() as counted:
        there = [matrix.to(DEVICE) for matrix in matrices]
        found, values = eigen_of_each(there), eigenvalues_of_each(there)
        assert sorted(name for name, times in counted.items() if times) == [
            "aten::linalg_eigh",
            "aten::linalg_eigvalsh",
        ]
        assert counted.total() == 2
        solved = [(squares.cpu(), vectors.cpu()) for squares, vectors in found]
        values = [each.cpu() for each in values]
    for matrix, (squares, vectors), alone in zip(matrices, solved, values, strict=True):
        wanted = torch.linalg.svdvals(matrix)
        torch.testing.assert_close(squares, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone, squares)
        torch.testing.assert_close((vectors * squares) @ vectors.T, matrix)
    assert eigen_of_each([]) == eigenvalues_of_each([]) == []


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    "matrix",
    [products(1, 1, 1), products(30, 2, 2), products(200, 300, 3), torch.eye(300).double()],
    ids=lambda matrix: f"{len(matrix)}",
)
def test_the_largest_is_not_waited_for(matrix: torch.Tensor, scale: float) -> None:
    with torch.inference_mode(), counted_waits() as counted:
        found = largest_eigenvalue((matrix * scale).to(DEVICE))
        assert not counted.total()
        found = found.cpu()
    largest = float(torch.linalg.eigvalsh(matrix)[-1]) * scale
    assert largest * (1 - 1e-9) <= float(found) <= largest * 1.001


def test_the_largest_of_nothing() -> None:
    assert float(largest_eigenvalue(torch.zeros(5, 5).double())) == 0.0


def test_as_many_as_may_be_held_are_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at least; those of the CPU alone."""
    monkeypatch.setattr(together, "LEAST_BYTES", 50)
    sizes = [20, 20, 20, 100, 20, 30]
    with counted_waits() as counted:
        there = (torch.zeros(size).to(DEVICE) for size in sizes)
        assert [[*map(len, some)] for some in batches(there, len)] == [
            [20, 20],
            [20],
            [100],
            [20, 30],
        ]
        assert not counted.total()
    here = map(torch.zeros, sizes)
    assert [[*map(len, some)] for some in batches(here, len)] == [[size] for size in sizes]


@pytest.mark.parametrize(("gigabytes", "together_there"), [(4, 1), (24, 4), (48, 8), (141, 8)])
def test_a_large_gpu_works_on_more_together(
    gigabytes: int, together_there: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight experts of Mixtral's size that take an exact SVD, all from 48 GB on."""
    gpu = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    held = LowRank(rank=512).working_bytes((14336, 4096))
    assert held > LowRank(rank=64).working_bytes((14336, 4096))
    limit = held_at_once(torch.device("cuda"))
    assert limit == max(2 << 30, gigabytes << 28)
    assert held_at_once(DEVICE) == 2 << 30
    monkeypatch.setattr(together, "held_at_once", lambda _: limit)
    with counted_waits():
        there = (torch.zeros(1).to(DEVICE) for _ in range(8))
        assert len(next(batches(there, lambda _: held))) == together_there

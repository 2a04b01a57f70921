"""Singular values against numpy's, and the ranks that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ders_core.analysis import Analysis, deltas, rank_for_energy, spectra
from ders_core.analysis.spectra import POINTS, singular_values_of_each, spectrum_of
from ders_core.compute import threads
from ders_core.decompose.averages import around_mean
from ders_core.packed.open import open_checkpoint


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (1, 7), (600, 300)])
def test_singular_values_are_numpys(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    delta = torch.randn(shape)
    wanted = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    (values,) = singular_values_of_each([delta])
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6 * wanted[0])


def test_ranks_of_known_spectra() -> None:
    matrices = [torch.eye(32), torch.outer(torch.randn(30), torch.randn(40))]
    matrices += [torch.randn(400, 500), torch.zeros(5, 6)]
    flat, one, long, nothing = map(
        spectrum_of, (singular_values_of_each([matrix])[0] for matrix in matrices)
    )
    assert flat.effective_rank == pytest.approx(32)
    assert flat.stable_rank == pytest.approx(32)
    assert one.stable_rank == pytest.approx(1, abs=1e-3)
    assert len(long.index) <= POINTS
    assert long.index[0] == 1
    assert long.index[-1] == 400
    assert long.energy[-1] == pytest.approx(1)
    assert nothing.effective_rank == 0


def test_rank_for_energy_is_the_smallest(analysis: Analysis, mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    split = around_mean(checkpoint.group(0, "gate"))
    sigmas = [np.linalg.svd(delta.double().numpy(), compute_uv=False) for delta in split.deltas()]
    squares = (np.stack(sigmas) ** 2).sum(0)
    kept = np.cumsum(squares) / squares.sum()
    for energy in (0.5, 0.9, 0.99):
        wanted = int(np.searchsorted(kept, energy)) + 1
        assert rank_for_energy(analysis, 0, "gate", energy) == wanted


@pytest.mark.parametrize("fitting", [1, 3])
def test_threads_hold_as_many_deltas_as_fit(
    mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    """However many threads there are; and values do not depend on it."""
    group = open_checkpoint(mixtral_dir).group(0, "gate")
    experts, out, width = group.shape
    values, base = group.read(), around_mean(group).base
    norms = (values.double() - base.double()).flatten(1).norm(dim=1).numpy()
    one_by_one = spectra.group_spectra(group, base, norms, "exact")
    borrowed = []

    @contextmanager
    def borrow(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        borrowed.append(dtype)
        yield torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(deltas, "borrow", borrow)
    held = out * width * (values.dtype.itemsize + torch.float32.itemsize)
    monkeypatch.setattr(threads, "WORKING_BYTES", fitting * held)
    with threads.threads_of_torch(16):
        many = spectra.group_spectra(group, base, norms, "exact")
    assert experts > 3
    assert borrowed.count(torch.float32) == fitting
    for one, other in zip(one_by_one, many, strict=True):
        assert np.array_equal(one.singular_value, other.singular_value)

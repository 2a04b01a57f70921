"""The sums of a chunk against brute force in float64, against torch, and in their own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ders_core.analysis import similarity
from ders_core.analysis.chunk_sums import ChunkSums, Workspace, count_bins
from ders_core.analysis.similarity import group_statistics
from ders_core.checkpoint import ExpertGroup, streaming
from ders_core.compute import kernels
from ders_core.compute.threads import threads_of_torch

MakeGroup = Callable[[torch.Tensor], ExpertGroup]


def close_experts(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(shape[1:], generator=random)
    return (start + 0.05 * torch.randn(shape, generator=random)).to(dtype)


def sums_of(weights: torch.Tensor, part: slice, every: int = 2) -> ChunkSums:
    shape, cpu = (len(weights), *weights.shape[1:]), torch.device("cpu")
    return Workspace(shape, weights.dtype, cpu, every).sums(3, weights, part)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 9, 70), (9, 5, 523)])
@pytest.mark.parametrize("by_loops", [True, False])
def test_sums_are_those_of_float64(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    by_loops: bool,
) -> None:
    if not by_loops:
        monkeypatch.setattr(kernels, "can_run", lambda device: False)
    weights, part = close_experts(shape, dtype), slice(1, shape[1] - 1)
    sums = sums_of(weights, part)
    exact = weights[:, part].double()
    base = sums.base.double()
    step = exact.mean(0).abs() * torch.finfo(dtype).eps + 1e-6
    assert bool(((base - exact.mean(0)).abs() <= step).all())
    deltas = exact - base
    flat, along = deltas.flatten(1), base.flatten()
    scale = float(flat.abs().sum(1).max())
    gram = flat @ flat.T
    torch.testing.assert_close(sums.gram, gram, rtol=1e-6, atol=1e-7 * float(gram.trace()))
    assert sums.energy == pytest.approx(float(along.square().sum()), rel=1e-6)
    wanted = torch.stack([flat.sum(1), flat @ along, (flat**3).sum(1), (flat**4).sum(1)])
    torch.testing.assert_close(sums.powers, wanted, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(sums.max_abs, flat.abs().amax(1), rtol=1e-6, atol=0.0)
    energy = deltas.square().sum(0)
    torch.testing.assert_close(sums.rows, energy.sum(1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(sums.columns, energy.sum(0), rtol=1e-5, atol=1e-12)
    chosen = [row for row in range(part.stop - part.start) if (3 + part.start + row) % 2 == 0]
    assert sums.sample is not None
    sampled = deltas[:, chosen].flatten().sort().values
    torch.testing.assert_close(sums.sample.double().sort().values, sampled, rtol=1e-6, atol=1e-7)


def test_products_are_summed_in_one_order() -> None:
    """Eight sums side by side in float32, of 512 values; these are added in float64."""
    weights = close_experts((3, 4, 1200))
    sums = sums_of(weights, slice(0, 4))
    deltas = (weights.float() - sums.base.float()).numpy()
    wanted = np.zeros((3, 3))
    for row in range(4):
        for begin in range(0, 1200, 512):
            piece = deltas[:, row, begin : begin + 512]
            for left in range(3):
                for right in range(left, 3):
                    products = (piece[left] * piece[right]).reshape(-1, 8)
                    lanes = np.zeros(8, dtype=np.float32)
                    for product in products:
                        lanes = lanes + product
                    folded = lanes.astype(np.float64)
                    while len(folded) > 1:
                        folded = folded[: len(folded) // 2] + folded[len(folded) // 2 :]
                    wanted[left, right] += folded[0]
    upper = np.triu_indices(3)
    np.testing.assert_array_equal(sums.gram.numpy()[upper], wanted[upper])


def test_threads_do_not_change_a_bit(group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 4 * 300 * 2)
    group = group_of(close_experts((4, 50, 300)))
    found = []
    for threads in (1, 3):
        with threads_of_torch(threads):
            found.append(group_statistics(group))
    for name, values in vars(found[0]).items():
        np.testing.assert_array_equal(values, getattr(found[1], name), err_msg=name)


@pytest.mark.parametrize(("slab", "read"), [(7, 3), (20, 9), (20, 100), (50, 1)])
def test_how_a_group_is_read_does_not_change_a_bit(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch, slab: int, read: int
) -> None:
    """By threads of their own, or ahead of them; in rows, whatever fits into what."""
    row = 4 * 300 * 2
    monkeypatch.setattr("ders_core.analysis.chunk_sums.LOOP_VALUES", 4 * 300 * 2)
    for module in (similarity, streaming):
        monkeypatch.setattr(module, "SLAB_BYTES", slab * row)
    monkeypatch.setattr(similarity, "READ_BYTES", read * row)
    weights = close_experts((4, 50, 300))
    group, found = group_of(weights), []
    for is_read_apart in (True, False):
        used = list[slice]()
        monkeypatch.setattr(similarity, "is_plain", lambda _, plain=is_read_apart: plain)
        monkeypatch.setattr(similarity, "of_slabs", noting(used, streaming.of_slabs))
        base, kept = torch.empty_like(weights[0]), torch.empty_like(weights)
        found.append((group_statistics(group, base=base, kept=kept), base, kept))
        assert torch.equal(kept, weights)
        assert torch.equal(base, weights.float().mean(0).bfloat16())
        assert bool(used) == is_read_apart
        assert not used or [rows.start for rows in used] == [0, *(rows.stop for rows in used[:-1])]
    for name, values in vars(found[0][0]).items():
        np.testing.assert_array_equal(values, getattr(found[1][0], name), err_msg=name)


def noting(used: list[slice], of_slabs: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    def noted(group: ExpertGroup, parts: list[slice], *rest: Any) -> Iterator[Any]:
        used.extend(parts)
        return of_slabs(group, parts, *rest)

    return noted


def test_bins_are_those_of_torch() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    values[:3] = torch.tensor([1e9, -1e9, 0.0])
    loops, plain = torch.zeros(2, 128, dtype=torch.int64)
    strided = torch.stack((values, values), 1)[:, 0]
    assert kernels.takes(values)
    assert not kernels.takes(strided)
    count_bins(values, 12.5, loops)
    count_bins(strided, 12.5, plain)
    assert torch.equal(loops, plain)
    places = np.clip(np.floor(values.double().numpy() * 12.5 + 64), 0, 127).astype(np.int64)
    np.testing.assert_array_equal(loops.numpy(), np.bincount(places, minlength=128))

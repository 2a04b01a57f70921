"""`lowrank` against an independent reference in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import (
    context,
    double,
    gauss,
    inputs,
    output_error,
    relative,
    round_trip,
    second_moments,
)

from ders_core.codecs import LowRank
from ders_core.codecs.fitting import thin_products
from ders_core.codecs.testing.inputs import DTYPES
from ders_core.compute.threads import WORKING_BYTES
from ders_core.files.dtype import Dtype


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 9), (33, 33)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 30, 100])
def test_lowrank_error_is_eckart_young(shape: tuple[int, int], rank: int) -> None:
    delta = gauss(shape)
    parts, decoded = round_trip(LowRank(rank=rank), delta, context())
    singular = np.linalg.svd(double(delta), compute_uv=False)
    expected = math.sqrt((singular[rank:] ** 2).sum())
    got = np.linalg.norm(double(decoded) - double(delta))
    assert abs(got - expected) < 1e-5 * np.linalg.norm(double(delta))
    assert parts["left"].shape[1] == min(rank, *shape)


def test_randomized_svd_is_near_the_best() -> None:
    """Above 512 the randomized form is taken; on a falling spectrum it loses next to nothing."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(600, 600, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(700, 600, generator=generator))[0]
    spectrum = 0.97 ** torch.arange(600)
    delta = (left * spectrum) @ right.T
    decoded = round_trip(LowRank(rank=16), delta, context())[1]
    best = float(spectrum[16:].double().norm())
    assert float((decoded - delta).double().norm()) < 1.001 * best


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_energy_gives_the_smallest_rank_that_suffices(energy: float) -> None:
    deltas = [gauss((20, 30), seed) * (1 + seed) for seed in range(3)]
    codec = LowRank(energy=energy).fit(deltas)
    assert isinstance(codec, LowRank)
    assert codec.energy is None
    pooled = sum(np.linalg.svd(double(delta), compute_uv=False) ** 2 for delta in deltas)
    assert isinstance(pooled, np.ndarray)
    share = np.cumsum(pooled) / pooled.sum()
    assert codec.rank == int(np.argmax(share >= energy - 1e-9)) + 1


def test_energy_of_low_rank_deltas() -> None:
    deltas = [gauss((30, 3), 1) @ gauss((3, 50), 2), gauss((30, 2), 3) @ gauss((2, 50), 4)]
    codec = LowRank(energy=0.999999).fit(iter(deltas))
    assert isinstance(codec, LowRank)
    assert codec.rank == 3
    assert relative(codec, deltas[0], context()) < 1e-5


@pytest.mark.parametrize("scale", [1e-28, 1e28])
def test_energy_of_very_small_and_large_deltas(scale: float) -> None:
    codec = LowRank(energy=0.999999).fit([gauss((600, 3), 1) @ gauss((3, 520), 2) * scale])
    assert isinstance(codec, LowRank)
    assert codec.rank == 3


def test_randomized_svd_keeps_its_promise_on_a_flat_spectrum() -> None:
    """At least 99 % of the energy that the exact one keeps, where no direction stands out."""
    delta = gauss((700, 900))
    for rank in (1, 8, 64):
        exact, quick = LowRank(rank=rank, svd="exact"), LowRank(rank=rank, svd="randomized")
        kept = [
            float(round_trip(codec, delta, context())[1].double().norm()) ** 2
            for codec in (exact, quick)
        ]
        assert kept[1] >= 0.99 * kept[0]


@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0, 7.0, 40.0])
@pytest.mark.parametrize("factor_bits", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_give_the_largest_rank_that_fits(
    bits: float, factor_bits: Any, dtype: torch.dtype
) -> None:
    shape = (48, 80)
    codec = LowRank(bits=bits, factor_bits=factor_bits)
    parts, _ = round_trip(codec, gauss(shape), context(dtype))
    size = sum(part.nbytes for part in parts.values())
    assert 8 * size <= bits * 48 * 80
    ranks = [
        LowRank(rank=rank, factor_bits=factor_bits).parts(shape, Dtype.of(dtype))
        for rank in range(1, 49)
    ]
    sizes = [sum(spec.nbytes for spec in parts.values()) for parts in ranks]
    assert size == max((nbytes for nbytes in sizes if 8 * nbytes <= bits * 48 * 80), default=0)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_quantized_factors_are_near_the_factors(bits: Any) -> None:
    """Where the spectrum falls, factors of few bits keep nearly what they stand for."""
    delta = gauss((90, 16), 1) * torch.logspace(0, -1, 16) @ gauss((16, 120), 2)
    exact = relative(LowRank(rank=8), delta, context())
    near = relative(LowRank(rank=8, factor_bits=bits), delta, context(torch.bfloat16))
    loss = {3: 0.25, 4: 0.13, 6: 0.05, 8: 0.015}[bits]
    assert exact**2 <= near**2 < exact**2 + loss**2


def test_leading_directions_in_more_bits_pay() -> None:
    """Delta-CoMe's idea (arXiv 2406.08903): on a falling spectrum, at no more bytes."""
    delta = gauss((128, 64), 1) * torch.logspace(0, -2, 64) @ gauss((64, 128), 2)
    mixed = LowRank(bits=1.5, factor_bits=3, leading=4, leading_bits=8)
    plain = LowRank(bits=1.5, factor_bits=3)
    sizes = [
        sum(spec.nbytes for spec in codec.parts((128, 128), Dtype.BF16).values())
        for codec in (mixed, plain)
    ]
    assert sizes[0] <= sizes[1] * 1.02
    bfloat16 = context(torch.bfloat16)
    assert relative(mixed, delta, bfloat16) < 0.85 * relative(plain, delta, bfloat16)


@pytest.mark.parametrize("rank", [1, 4, 12])
@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_with_a_calibration_the_error_of_outputs_is_the_least_possible(rank: int, svd: Any) -> None:
    """Eckart-Young for Δ·H^½: the singular values of Δ·Xᵀ beyond the rank (float64)."""
    delta, x = gauss((40, 60)), inputs(60)
    known = context(moments=second_moments(x))
    tail = np.linalg.svd(double(delta) @ double(x).T, compute_uv=False)
    least = math.sqrt((tail[rank:] ** 2).sum() / (tail**2).sum())
    error = output_error(LowRank(rank=rank, svd=svd), delta, known, x)
    assert error == pytest.approx(least, rel=0.01)
    assert output_error(LowRank(rank=rank), delta, context(), x) > 1.2 * least


def test_a_diagonal_calibration_helps_too() -> None:
    delta, x = gauss((40, 60)), inputs(60)
    rough = context(moments=second_moments(x).diagonal())
    codec = LowRank(rank=6)
    assert output_error(codec, delta, rough, x) < 0.8 * output_error(codec, delta, context(), x)


def test_left_factors_are_fitted_again_to_outputs() -> None:
    """With quantized factors L is the least-squares solution for R as stored, under H."""
    delta, x = gauss((40, 60)), inputs(60)
    known = context(torch.float32, 5, second_moments(x))
    parts, decoded = round_trip(LowRank(rank=5, factor_bits=8), delta, known)
    assert set(parts) == {
        f"{side}.trailing.{part}" for side in ("left", "right") for part in ("codes", "scales")
    }
    right = np.linalg.svd(double(decoded))[2][:5]  # spans the rows that were stored
    best = np.linalg.lstsq(double(x) @ right.T, double(x) @ double(delta).T, rcond=None)[0].T
    least = np.linalg.norm(double(x) @ (best @ right - double(delta)).T)
    error = np.linalg.norm(double(x) @ (double(decoded) - double(delta)).T)
    assert error < 1.01 * least


@pytest.mark.parametrize("fields", [{}, {"factor_bits": 4}], ids=str)
def test_it_is_synthesized_a_few_rows_at_a_time(
    fields: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than at a time: the base plus the delta in float64, rounded once; and some of the
    delta's."""
    shape, known = (300, 1024), context(torch.float32)
    monkeypatch.setattr(thin_products, "TOGETHER", 120 * shape[1])
    base, codec = gauss(shape, 1, 1.0), LowRank(rank=5, **fields)
    parts = codec.encode(gauss(shape, 2, 0.1), known)
    delta = codec.decode(parts, shape, known)
    exact = base.double() + delta.double()
    for rows in (slice(100, 290), slice(130, 140)):
        pieces, some = codec.unpack_with_rows(rows, parts, base, known)
        weight = torch.cat([*pieces]).view(shape)
        torch.testing.assert_close(weight.double(), exact, rtol=0, atol=1e-6)
        assert torch.equal(some, delta[rows])
    assert torch.equal(codec.unpack(parts, base, known), weight)


def test_large_experts_are_encoded_side_by_side() -> None:
    """Two of Mixtral's size fit into what threads may hold, unless an exact SVD is taken."""
    shape = (14336, 4096)
    for codec in (LowRank(rank=64), LowRank(rank=64, factor_bits=4)):
        assert 2 * codec.working_bytes(shape) <= WORKING_BYTES
    exact = LowRank(rank=64, svd="exact"), LowRank(energy=0.9), LowRank(rank=1000)
    assert all(2 * codec.working_bytes(shape) > WORKING_BYTES for codec in exact)

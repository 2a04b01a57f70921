"""Estimated spectra against exact ones: flat, decaying, low rank in noise, and deficient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.messages import raises_saying

from ders_core.analysis import Analysis, analyze, expected, of_group, rank_for_energy
from ders_core.analysis.head import HEAD, heads
from ders_core.analysis.krylov import BLOCK, STEPS, curves
from ders_core.analysis.spectra import spectrum_of
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import LowRank
from ders_core.compute.eigen import eigen_of
from ders_core.compute.krylov import Dense, Krylov
from ders_core.figures import report_html

SHAPE = (1200, 900)
KINDS = ("flat", "decaying", "noisy", "deficient")
DTYPES = (torch.float32, torch.bfloat16)  # of `product_dtype` on one machine or another


def delta_of(kind: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    out, width = SHAPE
    noise = torch.randn(SHAPE, generator=random) * 1e-3
    left = torch.randn(out, width, generator=random) / out**0.5
    right = torch.randn(width, width, generator=random) / width**0.5
    rank = torch.arange(1, width + 1)
    match kind:
        case "flat":
            return noise
        case "decaying":
            return torch.matmul(left * rank**-0.7, right)
        case "noisy":
            return torch.matmul(left * (rank <= 12), right) * 0.3 + noise
        case _:
            return torch.matmul(left * (rank <= 5), right)


@cache
def factors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a product `[out, in]` of that rank, in float64. Not to be written to."""
    random = torch.Generator().manual_seed(3)
    out, width = SHAPE
    left = torch.randn(out, count, generator=random, dtype=torch.float64)
    return left, torch.randn(count, width, generator=random, dtype=torch.float64)


@cache
def low_rank(count: int, noise: float = 0.0) -> torch.Tensor:
    """noise: its norm, as a share of the norm of the rest. Not to be written to."""
    left, right = factors(count)
    exact_part = left @ right
    random = torch.Generator().manual_seed(4)
    rest = torch.randn(SHAPE, generator=random, dtype=torch.float64)
    scale = noise * float(exact_part.norm() / rest.norm())
    return (exact_part + scale * rest).float()


def values_of_product(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """The singular values of left @ right, as many as its rank, from the small factors."""
    first, second = torch.linalg.qr(left)[1], torch.linalg.qr(right.T)[1]
    values: np.ndarray = np.linalg.svd((first @ second.T).numpy(), compute_uv=False)
    return values


@pytest.fixture(scope="module", params=KINDS)
def delta(request: pytest.FixtureRequest) -> torch.Tensor:
    return delta_of(request.param)


@cache
def exact(delta: torch.Tensor) -> np.ndarray:
    """Not to be written to."""
    return np.linalg.svd(delta.double().numpy(), compute_uv=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_head_is_within_what_it_promises(delta: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = exact(delta)[:HEAD]
    for matrix in (delta, delta.T):
        (sigmas,) = heads([matrix.to(dtype)])
        floor = 0.002 * wanted[0]  # what lies below the rounding of Δ is noise
        assert np.abs(sigmas - wanted).max() < max(0.02 * wanted[-1], floor)
        assert (sigmas[1:] <= sigmas[:-1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_curve_is_within_what_it_promises(delta: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = exact(delta)
    energy = float((wanted**2).sum())
    (sigmas,) = curves([delta.to(dtype)], [energy])
    assert sigmas.shape == wanted.shape
    assert (sigmas**2).sum() == pytest.approx(energy, rel=0.005)
    kept = np.cumsum(sigmas**2) / energy
    assert np.abs(kept - np.cumsum(wanted**2) / energy).max() < 0.01
    ranks = [spectrum_of(sigma).effective_rank for sigma in (sigmas, wanted)]
    if wanted[-50] > 0.05 * wanted[HEAD] > 1e-6 * wanted[0]:  # a floor of noise
        assert ranks[0] == pytest.approx(ranks[1], rel=0.01)
    elif wanted[50] > 1e-6 * wanted[0]:  # a steep fall
        assert ranks[1] < ranks[0] < 1.12 * ranks[1]
    else:  # nothing but the rounding
        assert ranks[0] == pytest.approx(ranks[1], rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rank", "noise"),
    [
        *[(1, 0), (5, 0), (5, 1e-6), (HEAD, 0), (HEAD + 1, 0), (40, 0), (40, 1e-6), (128, 0)],
        *[(256, 0), (400, 0)],
    ],
)
def test_an_exactly_low_rank_is_not_lifted_by_rounding(
    rank: int, noise: float, dtype: torch.dtype
) -> None:
    """Noise of a millionth is below every rounding: the values are those of the factors."""
    delta = low_rank(rank, noise)
    wanted = values_of_product(*factors(rank))
    energies = [float(values.double().square().sum()) for values in (delta, delta.to(dtype))]
    for energy in energies:
        (estimate,) = curves([delta.to(dtype).T], [energy])
        assert np.count_nonzero(estimate) == rank
        np.testing.assert_allclose(estimate[:rank], wanted, rtol=0.02)
        assert (estimate**2).sum() == pytest.approx(energy)
        effective = spectrum_of(wanted).effective_rank
        assert spectrum_of(estimate).effective_rank == pytest.approx(effective, rel=0.01)


@pytest.mark.parametrize(
    ("dtype", "noise", "error"),
    [(torch.float32, 1e-3, 0.02), (torch.float32, 0.1, 0.02), (torch.bfloat16, 0.1, 0.07)],
)
def test_noise_above_the_rounding_is_kept(dtype: torch.dtype, noise: float, error: float) -> None:
    delta = low_rank(5, noise)
    wanted = exact(delta)
    (estimate,) = curves([delta.to(dtype)], [float((wanted**2).sum())])
    effective = spectrum_of(wanted).effective_rank
    assert effective > 1.1 * spectrum_of(wanted[:5]).effective_rank
    assert spectrum_of(estimate).effective_rank == pytest.approx(effective, rel=error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_squares_of_a_low_rank_do_not_exceed_its_energy(dtype: torch.dtype) -> None:
    """The basis stays orthonormal when a step has nothing new to add to it."""
    delta = low_rank(5)
    space = Krylov(Dense(delta.to(dtype)), BLOCK, seed=0)
    for _ in range(STEPS):
        space.grow()
    assert eigen_of(space.gram)[0].sum() == pytest.approx(
        float(delta.double().square().sum()), rel=0.002
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_delta_of_zeros_has_a_spectrum_of_zeros(dtype: torch.dtype) -> None:
    delta = torch.zeros(SHAPE, dtype=dtype)
    assert not curves([delta], [0.0])[0].any()
    assert not heads([delta])[0].any()


def test_the_same_delta_gives_the_same_numbers() -> None:
    delta = delta_of("noisy")
    np.testing.assert_array_equal(heads([delta])[0], heads([delta.clone()])[0])


@pytest.fixture(scope="module")
def large(checkpoint_of: Callable[..., Checkpoint]) -> Checkpoint:
    random = torch.Generator().manual_seed(1)
    base = torch.randn(500, 400, generator=random) * 0.02
    return checkpoint_of((base + 1e-3 * torch.randn(2, 500, 400, generator=random)).bfloat16())


def test_an_analysis_tells_which_kind_it_has(
    large: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.analysis.spectra.EXACT_BELOW", 399)
    heads = analyze(large, spectra="head")
    spectra = of_group(heads.spectra, 0, "gate")
    assert spectra["index"].max() == HEAD
    assert heads.experts["effective_rank"].isna().all()
    assert rank_for_energy(heads, 0, "gate", 0.99) == 0  # not known, rather than wrong
    assert expected(heads, 0, "gate", LowRank(rank=64)) is None
    assert expected(heads, 0, "gate", LowRank(rank=8)) is not None
    assert "<html" in report_html(heads)
    heads.save(tmp_path / "heads")
    assert Analysis.load(tmp_path / "heads").meta["spectra"] == "head"
    curves, whole = analyze(large, spectra="curve"), analyze(large, spectra="exact")
    assert not curves.experts["effective_rank"].isna().any()
    for energy in (0.5, 0.9):
        wanted = rank_for_energy(whole, 0, "down", energy)
        assert rank_for_energy(curves, 0, "down", energy) == pytest.approx(wanted, rel=0.03)
    with raises_saying(ValueError, "all", "none, head, curve, exact"):
        analyze(large, spectra="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("exact", torch.float32), *(("curve", dtype) for dtype in DTYPES)]
)
def test_experts_made_by_adapters_have_the_rank_of_their_adapters(
    kind: str,
    dtype: torch.dtype,
    checkpoint_of: Callable[..., Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W + B_i A_i in float32, against the singular values of the small factors in float64."""
    monkeypatch.setattr("ders_core.analysis.spectra.product_dtype", lambda device: dtype)
    monkeypatch.setattr("ders_core.analysis.spectra.EXACT_BELOW", 799)
    experts, rank, shape = 3, 4, (900, 800)
    random = torch.Generator().manual_seed(2)
    left = torch.randn(experts, shape[0], rank, generator=random, dtype=torch.float64)
    right = torch.randn(experts, rank, shape[1], generator=random, dtype=torch.float64) * 1e-3
    base = torch.randn(shape, generator=random) * 0.02
    checkpoint = checkpoint_of((base + left @ right).float())
    monkeypatch.setattr(checkpoint, "groups", lambda: [checkpoint.group(0, "gate")])
    table = analyze(checkpoint, spectra=kind).experts.set_index("expert")  # type: ignore[arg-type]
    for expert in range(experts):
        shares = torch.full((experts, 1, 1), -1 / experts, dtype=torch.float64)
        shares[expert] += 1
        both = torch.cat(list(left * shares), 1), torch.cat(list(right), 0)
        wanted = spectrum_of(values_of_product(*both))
        row = table.loc[expert]
        assert row["effective_rank"] == pytest.approx(wanted.effective_rank, rel=0.01)
        assert row["stable_rank"] == pytest.approx(wanted.stable_rank, rel=0.01)

"""Estimated spectra against exact ones: flat, decaying, low rank in noise, and deficient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ders_core.analysis import Analysis, analyze, of_group, predicted_error, rank_for_energy
from ders_core.analysis.krylov import HEAD, curve, head, product_dtype
from ders_core.analysis.spectra import spectrum_of
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import LowRank
from ders_core.figures import report_html

SHAPE = (1200, 900)
KINDS = ("flat", "decaying", "noisy", "deficient")


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
            return (left * rank**-0.7) @ right
        case "noisy":
            return noise + (left * (rank <= 12)) @ right * 0.3
        case _:
            return (left * (rank <= 5)) @ right


@pytest.fixture(scope="module", params=KINDS)
def delta(request: pytest.FixtureRequest) -> torch.Tensor:
    return delta_of(request.param)


def exact(delta: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(delta.double().numpy(), compute_uv=False)


@pytest.mark.parametrize("dtype", [torch.float32, product_dtype(torch.device("cpu"))])
def test_the_head_is_within_what_it_promises(delta: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = exact(delta)[:HEAD]
    for own in (delta, delta.T):
        found = head(own.to(dtype))
        floor = 0.002 * wanted[0]  # what lies below the rounding of Δ is noise
        assert np.abs(found - wanted).max() < max(0.02 * wanted[-1], floor)
        assert (found[1:] <= found[:-1]).all()


def test_the_curve_is_within_what_it_promises(delta: torch.Tensor) -> None:
    wanted = exact(delta)
    energy = float((wanted**2).sum())
    found = curve(delta.to(product_dtype(delta.device)), energy)
    assert found.shape == wanted.shape
    assert (found**2).sum() == pytest.approx(energy, rel=0.005)
    kept = np.cumsum(found**2) / energy
    assert np.abs(kept - np.cumsum(wanted**2) / energy).max() < 0.01
    ranks = [spectrum_of(sigma).effective_rank for sigma in (found, wanted)]
    if wanted[-50] > 0.05 * wanted[HEAD] > 1e-6 * wanted[0]:  # a floor of noise
        assert ranks[0] == pytest.approx(ranks[1], rel=0.01)
    elif wanted[50] > 1e-6 * wanted[0]:  # a steep fall
        assert ranks[1] < ranks[0] < 1.12 * ranks[1]


def test_the_same_delta_gives_the_same_numbers() -> None:
    delta = delta_of("noisy")
    np.testing.assert_array_equal(head(delta), head(delta.clone()))


@pytest.fixture(scope="module")
def large(checkpoint_of: Callable[..., Checkpoint]) -> Checkpoint:
    random = torch.Generator().manual_seed(1)
    base = torch.randn(1700, 1600, generator=random) * 0.02
    return checkpoint_of((base + 1e-3 * torch.randn(2, 1700, 1600, generator=random)).bfloat16())


def test_an_analysis_tells_which_kind_it_has(large: Checkpoint, tmp_path: Path) -> None:
    heads = analyze(large, spectra="head")
    own = of_group(heads.spectra, 0, "gate")
    assert own["index"].max() == HEAD
    assert heads.experts["effective_rank"].isna().all()
    assert rank_for_energy(heads, 0, "gate", 0.99) == 0  # not known, rather than wrong
    assert predicted_error(heads, 0, "gate", LowRank(rank=64)) is None
    assert predicted_error(heads, 0, "gate", LowRank(rank=8)) is not None
    assert "<html" in report_html(heads)
    heads.save(tmp_path / "heads")
    assert Analysis.load(tmp_path / "heads").meta["spectra"] == "head"
    curves, whole = analyze(large, spectra="curve"), analyze(large, spectra="exact")
    assert not curves.experts["effective_rank"].isna().any()
    for energy in (0.5, 0.9):
        wanted = rank_for_energy(whole, 0, "down", energy)
        assert rank_for_energy(curves, 0, "down", energy) == pytest.approx(wanted, rel=0.03)
    with pytest.raises(ValueError, match="none of none, head, curve, exact"):
        analyze(large, spectra="all")  # type: ignore[arg-type]

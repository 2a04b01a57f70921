"""Experts of any magnitude have the same analysis, in proportion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.given_experts import MakeCheckpoint, checkpoint_of, group_of

from ders_core.analysis import analyze
from ders_core.analysis.spectra import group_spectra
from ders_core.analysis.verdict import sampled_verdict
from ders_core.codecs import Codec, Lossless, LowRank, Quantized
from ders_core.errors import DersError
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

__all__ = ["checkpoint_of", "group_of"]

FAR = [2.0**-84, 2.0**-60, 2.0**60, 2.0**84]
"""About 1e±18 and 1e±25: exact factors, so that every figure must scale exactly."""


def experts(seed: int = 0) -> torch.Tensor:
    """`[5, 48, 32]` bfloat16 of one start."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(48, 32, generator=random)
    return (start + 0.1 * torch.randn(5, 48, 32, generator=random)).bfloat16()


@pytest.mark.parametrize("factor", FAR)
def test_tables_scale_with_the_weights(factor: float, checkpoint_of: MakeCheckpoint) -> None:
    weights = experts()
    near, far = (analyze(checkpoint_of(w), spectra="exact") for w in (weights, weights * factor))
    for name, columns in {
        "groups": {"norm_base": 1, "mean_norm_delta": 1, "norm_ratio": 0, "mean_one_minus_cos": 0},
        "experts": {"norm": 1, "norm_delta": 1, "mean": 1, "std": 1, "max_abs": 1, "kurtosis": 0},
        "spectra": {"singular_value": 1, "energy": 0},
        "similarity": {"one_minus_cos": 0, "cos_delta": 0},
        "histograms": {"left": 1, "count": 0},
        "energy_map": {"energy": 0},
    }.items():
        for column, power in columns.items():
            wanted = getattr(near, name)[column].to_numpy() * factor**power
            np.testing.assert_allclose(
                getattr(far, name)[column].to_numpy(), wanted, rtol=1e-6, err_msg=column
            )
    assert far.experts["effective_rank"].to_numpy() == pytest.approx(
        near.experts["effective_rank"].to_numpy(), rel=1e-6
    )
    assert far.verdict.verdict == "upcycled"


@pytest.mark.parametrize("factor", FAR)
def test_figures_are_those_of_float64(factor: float, checkpoint_of: MakeCheckpoint) -> None:
    weights = experts() * factor
    analysis = analyze(checkpoint_of(weights), spectra="none")
    exact = weights.double().numpy().reshape(5, -1)
    base = weights.float().mean(0).bfloat16().double().numpy().reshape(-1)
    rows = analysis.experts[(analysis.experts.layer == 0) & (analysis.experts.projection == "gate")]
    assert rows["norm"].to_numpy() == pytest.approx(np.linalg.norm(exact, axis=1), rel=1e-5)
    assert rows["norm_delta"].to_numpy() == pytest.approx(
        np.linalg.norm(exact - base, axis=1), rel=1e-5
    )
    assert rows["max_abs"].to_numpy() == pytest.approx(np.abs(exact - base).max(1), rel=1e-5)


@pytest.mark.parametrize("kind", ["head", "curve"])
@pytest.mark.parametrize("factor", [2.0**-84, 2.0**84])
def test_estimated_spectra_scale(
    factor: float, kind: str, checkpoint_of: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of matrices that are too large for exact ones."""
    monkeypatch.setattr("ders_core.analysis.spectra.EXACT_BELOW", 8)
    random = torch.Generator().manual_seed(4)
    weights = torch.randn(2, 300, 280, generator=random)
    found = []
    for size in (1.0, factor):
        group = checkpoint_of(weights * size).group(0, "gate")
        base = torch.zeros(300, 280)
        norms = np.linalg.norm((weights * size).double().numpy().reshape(2, -1), axis=1)
        found.append(group_spectra(group, base, norms, kind)[0])  # type: ignore[arg-type]
    near, far = found
    np.testing.assert_allclose(far.singular_value, near.singular_value * factor, rtol=1e-4)
    np.testing.assert_allclose(far.energy, near.energy, rtol=1e-4)


@pytest.mark.parametrize("factor", FAR)
def test_the_sampled_verdict_is_the_same(factor: float, checkpoint_of: MakeCheckpoint) -> None:
    near, far = (sampled_verdict(checkpoint_of(experts() * size)) for size in (1.0, factor))
    assert far.mean_cosine == pytest.approx(near.mean_cosine, rel=1e-9)


@pytest.mark.parametrize("codec", [Lossless(), Quantized(bits=4, group_size=16), LowRank(rank=2)])
@pytest.mark.parametrize("factor", [2.0**-84, 2.0**84])
def test_reports_are_right_or_the_weights_are_refused(
    factor: float, codec: Codec, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    """Errors relative to the deltas, against float64 from what was read back."""
    source, out = checkpoint_of(experts() * factor), tmp_path / "out"
    try:
        report = compress(source.path, out, Recipe(name="far", rules=(Rule(codec=codec),)))
    except DersError:  # scales in 16 bits do not hold such weights
        assert not isinstance(codec, Lossless)
        return
    packed = PackedCheckpoint(out)
    stored, parts = (load_file(place / "model.safetensors") for place in (source.path, out))
    for entry, group in zip(report.entries, packed.manifest.groups, strict=True):
        names = [matrix.tensor for matrix in group.experts]
        exact = np.stack([stored[name].double().numpy() for name in names])
        got = np.stack([packed.original.read(name).double().numpy() for name in names])
        base = parts[f"{group.prefix}.base"].double().numpy()
        error, delta = np.linalg.norm(got - exact), np.linalg.norm(exact - base)
        assert entry.rel_error_weight == pytest.approx(error / np.linalg.norm(exact), rel=1e-5)
        assert entry.rel_error_delta == pytest.approx(error / delta, rel=1e-5)
    assert verify(out, source.path).ok

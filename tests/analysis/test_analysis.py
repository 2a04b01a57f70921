"""The analysis of whole checkpoints: tables, verdicts, spectra, predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.messages import raises_saying

from ders_core.analysis import (
    Analysis,
    analyze,
    expected,
    judge,
    of_group,
    rank_for_energy,
    sampled_verdict,
)
from ders_core.analysis.origins import clusters_sentence
from ders_core.analysis.similarity import BINS, REACH
from ders_core.analysis.spectra import POINTS, singular_values, spectrum
from ders_core.analysis.tables import COLUMNS
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import (
    DeltaCodec,
    EncodeContext,
    Entropy,
    Expected,
    Keep,
    Lossless,
    LowRank,
    Sparse,
    make_codec,
)
from ders_core.codecs.fitting.gaussian_error import (
    ENTROPY_CODED,
    GISH_PIERCE,
    LLOYD_MAX,
    PANTER_DITE,
    UNIFORM,
)
from ders_core.decompose.averages import around_mean
from ders_core.errors import Cancelled, CheckpointError
from ders_core.packed.open import open_checkpoint


def delta_codec(fields: dict[str, Any]) -> DeltaCodec:
    """The codec that a recipe's fields name, which must be one of deltas."""
    codec = make_codec(fields)
    assert isinstance(codec, DeltaCodec)
    return codec


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


def test_every_group_has_its_rows(analysis: Analysis, mixtral_dir: Path) -> None:
    groups = open_checkpoint(mixtral_dir).groups()
    assert analysis.group_keys() == [group.key for group in groups]
    for name, columns in COLUMNS.items():
        table = getattr(analysis, name)
        assert tuple(table.columns) == columns
        assert not table.isna().any().any(), name
    assert len(analysis.similarity) == sum(group.shape[0] ** 2 for group in groups)


def test_norm_ratio_is_that_of_the_decomposition(analysis: Analysis, mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    split = around_mean(checkpoint.group(1, "down"))
    norms = [float(delta.double().norm()) for delta in split.deltas()]
    row = of_group(analysis.groups, 1, "down").iloc[0]
    wanted = np.mean(norms) / float(split.base.double().norm())
    assert row["norm_ratio"] == pytest.approx(wanted, rel=1e-5)


def test_verdicts(mixtral_dir: Path, qwen2_moe_dir: Path, scratch_dir: Path) -> None:
    for directory, wanted in (
        (mixtral_dir, "upcycled"),
        (qwen2_moe_dir, "upcycled"),
        (scratch_dir, "scratch"),
    ):
        checkpoint = open_checkpoint(directory)
        quick, full = sampled_verdict(checkpoint), analyze(checkpoint, spectra="none").verdict
        assert quick.verdict == full.verdict == wanted
        assert quick.mean_cosine == pytest.approx(full.mean_cosine, abs=0.02)
    assert judge(0.3).verdict == "partly"


@pytest.mark.parametrize(
    ("which", "mean", "fact"),
    [
        ([0, 1, 0, 2, 1, 2, 0, 1, 2, 0, 1, 2], 0.27, "3 sets of experts"),
        ([0, 1, 2, 3, 4, 5, 6, 7] * 2, 0.07, "8 sets of experts"),
        ([0, 0, 0, 0, 0, 0, 1, 1], 0.57, "2 sets of experts"),
        ([0, 0, 0, 0, 0, 0, 0, 0], 1.0, "one start"),
    ],
)
def test_experts_of_several_starts_are_told(
    checkpoint_of: Callable[..., Checkpoint],
    planted: Callable[..., torch.Tensor],
    which: list[int],
    mean: float,
    fact: str,
) -> None:
    """Whatever the mean cosine of all pairs: below that of scratch, between, or above."""
    weights = planted(which, noise=0.003)
    checkpoint = checkpoint_of(weights)
    quick, full = sampled_verdict(checkpoint), analyze(checkpoint, spectra="none").verdict
    unit = torch.nn.functional.normalize(weights.flatten(1).double(), dim=1)
    cosines = unit @ unit.T
    start = torch.tensor(which)
    alike = start[:, None] == start[None, :]
    for verdict in (quick, full):
        assert fact in verdict.sentence
        assert f"{verdict.mean_cosine:.4f}" in verdict.sentence
        assert verdict.mean_cosine == pytest.approx(mean, abs=0.05)
        assert (verdict.verdict == "upcycled") == (max(which) == 0) == (verdict.starts is None)
        assert (verdict.starts is None) == ("clusters: auto" not in verdict.sentence)
        if verdict.starts:
            assert verdict.starts.count == max(which) + 1
            assert verdict.starts.within == pytest.approx(1, abs=1e-3)
            assert verdict.starts.between == pytest.approx(float(cosines[~alike].mean()), abs=0.05)


def test_groups_of_experts_near_one_start_are_still_upcycled(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> None:
    """Two models fine-tuned from one, four experts of each."""
    weights = planted([0] * 8, noise=0.0) + 0.2 * planted([0, 1] * 4, noise=0.01, seed=5)
    verdict = analyze(checkpoint_of(weights), spectra="none").verdict
    assert verdict.verdict == "upcycled"
    assert verdict.starts is not None
    assert verdict.starts.count == 2
    assert "one start" in verdict.sentence
    assert "2 sets" in verdict.sentence
    assert "clusters: auto" in verdict.sentence


def test_a_scratch_model_is_told_with_its_figures(scratch_dir: Path) -> None:
    tables = analyze(open_checkpoint(scratch_dir), spectra="none")
    assert tables.groups["clusters"].unique().tolist() == [1]
    verdict = tables.verdict
    assert verdict.verdict == "scratch"
    assert f"{verdict.mean_cosine:.4f}" in verdict.sentence
    assert "from scratch" in verdict.sentence
    assert "go on" in verdict.sentence  # a warning, not a refusal


def test_clusters_are_in_the_tables(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> None:
    which = [0, 1, 1, 0, 0, 1, 0, 1]
    weights = planted(which)
    tables = analyze(checkpoint_of(weights, planted([0] * 8)), spectra="none")
    assert tables.groups["clusters"].tolist() == [2, 2, 2, 1, 1, 1]
    flat = weights.double().flatten(1)
    starts = torch.stack([flat[[w == start for w in which]].mean(0) for start in (0, 1)])
    left = (flat - starts[which]).square().sum() / (flat - flat.mean(0)).square().sum()
    assert tables.groups["cluster_gain"].tolist() == pytest.approx([float(left)] * 3 + [1.0] * 3)
    assert tables.clusters_of(0, "down") == which
    assert tables.clusters_of(1, "down") == [0] * 8
    sentence = tables.about_clusters(0, "up")
    for fact in (
        "2 sets",
        "{0, 3, 4, 6}, {1, 2, 5, 7}",
        f"{float(left):.2g} ×",
        "clusters: auto",
    ):
        assert fact in sentence
    for fact in ("One base", "8 experts"):
        assert fact in tables.about_clusters(1, "up")


def test_tables_of_version_1_get_their_clusters(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    tables = analyze(checkpoint_of(planted([0, 1, 1, 0, 2, 2, 0, 1] * 2), planted([0] * 16)))
    place = tmp_path / "a"
    tables.save(place)
    for name, columns in (("groups", ["clusters", "cluster_gain"]), ("experts", ["cluster"])):
        getattr(tables, name).drop(columns=columns).to_parquet(place / f"{name}.parquet")
    head = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    (place / "meta.json").write_text(json.dumps(head | {"version": 1}), encoding="utf-8")
    loaded = Analysis.load(place)
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(tables, name))
    (place / "meta.json").write_text(json.dumps(head | {"version": 99}), encoding="utf-8")
    with raises_saying(CheckpointError, "99", "analyse again"):
        Analysis.load(place)


@pytest.mark.parametrize(
    ("clusters", "facts"),
    [
        ([0], ["one expert"]),
        ([0, 1, 2, 2, 2, 2, 0, 1], ["3 sets", "{0, 6}, {1, 7}, {2–5};", "0.012 ×"]),
        (list(range(10)) * 3, ["10 sets", "3 each", "0.012 ×"]),
        ([0, *range(12)], ["12 sets", "1 to 2 each", "0.012 ×"]),
    ],
)
def test_sentences_about_clusters(clusters: list[int], facts: list[str]) -> None:
    sentence = clusters_sentence(clusters, 0.0123)
    for fact in facts:
        assert fact in sentence


def test_saved_tables_come_back_the_same(analysis: Analysis, tmp_path: Path) -> None:
    analysis.save(tmp_path / "a")
    analysis.save(tmp_path / "a")  # again, over the old one
    loaded = Analysis.load(tmp_path / "a")
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(analysis, name))
    assert loaded.meta == analysis.meta
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    (tmp_path / "a" / "groups.parquet").unlink()
    with raises_saying(CheckpointError, "analyse again"):
        Analysis.load(tmp_path / "a")


def test_json_is_json(analysis: Analysis) -> None:
    data = json.loads(analysis.to_json())
    assert data["verdict"] == "upcycled"
    assert len(data["groups"]) == len(analysis.groups)


def test_only_the_layers_asked_for(mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    tables = analyze(checkpoint, layers=[1], spectra="none")
    assert set(tables.groups["layer"]) == {1}
    assert tables.spectra.empty
    with raises_saying(CheckpointError, "no experts", "layer 9"):
        analyze(checkpoint, layers=[9])


def test_progress_counts_bytes_and_can_stop(mixtral_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(mixtral_dir)
    analyze(checkpoint, spectra="none", progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (checkpoint.bytes_experts, checkpoint.bytes_experts)

    def stop(done: int, total: int, message: str) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        analyze(checkpoint, progress=stop)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (1, 7), (600, 300)])
def test_singular_values_are_numpys(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    delta = torch.randn(shape)
    wanted = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(delta), wanted, rtol=1e-6, atol=1e-6 * wanted[0])


def test_ranks_of_known_spectra() -> None:
    flat = spectrum(torch.eye(32))
    assert flat.effective_rank == pytest.approx(32)
    assert flat.stable_rank == pytest.approx(32)
    one = spectrum(torch.outer(torch.randn(30), torch.randn(40)))
    assert one.stable_rank == pytest.approx(1, abs=1e-3)
    long = spectrum(torch.randn(400, 500))
    assert len(long.index) <= POINTS
    assert long.index[0] == 1
    assert long.index[-1] == 400
    assert long.energy[-1] == pytest.approx(1)
    nothing = spectrum(torch.zeros(5, 6))
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


@pytest.mark.parametrize(
    ("codec", "tolerance"),
    [
        ({"codec": "sparse", "drop_rate": 0.8}, 0.05),
        ({"codec": "sparse", "drop_rate": 0.8, "method": "magnitude"}, 0.03),
        ({"codec": "quantized", "bits": 3, "group_size": 0}, 0.15),
        ({"codec": "lowrank", "rank": 12}, 0.02),
    ],
)
def test_predictions_come_near_what_encoding_measures(
    analysis: Analysis, mixtral_dir: Path, codec: dict[str, Any], tolerance: float
) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    group = checkpoint.group(0, "up")
    split, coder = around_mean(group), delta_codec(codec)
    error = energy = 0.0
    for expert, delta in enumerate(split.deltas()):
        context = EncodeContext(group.dtype, expert)
        shape = (group.shape[1], group.shape[2])
        decoded = coder.decode(coder.encode(delta, context), shape, context)
        error += float((decoded - delta).double().square().sum())
        energy += float(delta.double().square().sum())
    loss = expected(analysis, 0, "up", coder)
    assert loss is not None
    assert loss.error == pytest.approx(math.sqrt(error / energy), rel=tolerance)


@pytest.mark.parametrize(
    "codec",
    [
        *({"codec": "entropy", "bits": bits} for bits in (0.1, 0.3, 0.5, 0.8, 1, 1.3, 2, 3, 5)),
        *({"codec": "quantized", "bits": bits, "grid": "uniform"} for bits in (1, 2, 3, 4, 5)),
        *({"codec": "quantized", "bits": bits, "grid": "affine"} for bits in (1, 2, 3, 4)),
        *({"codec": "quantized", "bits": bits, "grid": "normal"} for bits in (1, 2, 3, 4, 5, 6)),
        *({"codec": "quantized", "bits": bits, "grid": "learned"} for bits in (1, 2, 3, 4, 5, 6)),
        {"codec": "quantized", "grid": "ternary"},
        {"codec": "sparse", "drop_rate": 0.8},
        {"codec": "sparse", "drop_rate": 0.8, "rescale": "none"},
        {"codec": "sparse", "drop_rate": 0.8, "rescale": "least_squares"},
        {"codec": "sparse", "drop_rate": 0.8, "rescale": "unbiased", "value_bits": 8},
        *(
            {"codec": "entropy", "bits": bits, "rounding": "unbiased"}
            for bits in (0.2, 0.6, 1.3, 2.5, 5)
        ),
        {"codec": "entropy", "bits": 0.5, "gain": "unbiased"},
        {"codec": "entropy", "bits": 0.2, "rounding": "unbiased", "gain": "least_squares"},
        {"codec": "quantized", "bits": 1, "gain": 0.9},
        {"codec": "sparse", "drop_rate": 0.8, "gain": 0.9},
    ],
    ids=lambda codec: " ".join(str(value) for value in codec.values()),
)
def test_predictions_for_gaussian_deltas(analysis: Analysis, codec: dict[str, Any]) -> None:
    shape = (32, 8192)
    delta = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    whole_rows = {"group_size": 0} if codec["codec"] == "quantized" else {}
    coder, context = delta_codec(codec | whole_rows), EncodeContext(torch.bfloat16, 5)
    decoded = coder.decode(coder.encode(delta, context), shape, context)
    energy = float(delta.double().square().sum())
    gain = float((decoded.double() * delta.double()).sum()) / energy
    noise = float((decoded - gain * delta).double().norm()) / math.sqrt(energy)
    loss = expected(analysis, 0, "up", coder)
    assert loss is not None
    assert loss.gain == pytest.approx(gain, rel=0.03)
    assert loss.noise == pytest.approx(noise, rel=0.05)


def test_prediction_of_entropy_coding_has_no_jumps(analysis: Analysis) -> None:
    bits = np.linspace(0.01, 8, 1000)
    predictions = [expected(analysis, 0, "up", Entropy(bits=b)) for b in bits]
    errors = np.array([loss.error for loss in predictions if loss is not None])
    assert (np.diff(errors) < 0).all()
    assert (np.abs(np.diff(np.log2(errors)) / np.diff(bits)) < 1.1).all()
    assert (errors > 2.0**-bits).all()  # Shannon's bound


@pytest.mark.parametrize("drop_rate", [0.3, 0.9, 0.97, 0.99, 0.995])
def test_magnitude_prediction_counts_what_lies_beyond_the_histogram(
    analysis: Analysis, drop_rate: float
) -> None:
    """Deltas with 1 % of entries: most of their energy lies in the outermost bins."""
    random = np.random.default_rng(6)
    deltas = random.normal(size=200_000) * (random.random(200_000) < 0.01)
    half = REACH * deltas.std()
    counts, edges = np.histogram(np.clip(deltas, -half, half), np.linspace(-half, half, BINS + 1))
    bins = pd.DataFrame({"left": edges[:-1], "right": edges[1:], "count": counts})
    bins = bins.assign(layer=0, projection="gate")
    norm = float(np.linalg.norm(deltas))
    norms = pd.DataFrame([{"layer": 0, "projection": "gate", "norm_delta": norm}])
    made = replace(analysis, histograms=bins, experts=norms)
    ordered = np.sort(deltas**2)
    wanted = math.sqrt(ordered[: round(drop_rate * deltas.size)].sum() / ordered.sum())
    codec = Sparse(method="magnitude", drop_rate=drop_rate)
    half_bin = REACH / BINS  # in standard deviations; the histogram sees no finer
    loss = expected(made, 0, "gate", codec)
    assert loss is not None
    assert loss.error == pytest.approx(wanted, abs=half_bin)


def test_predictions_that_cannot_be_made(mixtral_dir: Path, analysis: Analysis) -> None:
    bare = analyze(open_checkpoint(mixtral_dir), spectra="none")
    assert expected(bare, 0, "gate", LowRank(rank=4)) is None
    assert rank_for_energy(bare, 0, "gate", 0.9) == 0
    for codec in (
        {"codec": "sparse", "pattern": "2:4"},
        {"codec": "sparse", "method": "della", "drop_rate": 0.8},
        {"codec": "lowrank", "bits": 0.5},
        {"codec": "entropy", "bits": 1, "steps": "sensitive"},
        {"codec": "entropy", "knob": 1, "steps": "sensitive"},
        {
            "codec": "chain",
            "stages": [{"codec": "lowrank", "rank": 2}, {"codec": "entropy", "bits": 1}],
        },
    ):
        assert expected(analysis, 0, "gate", make_codec(codec)) is None
    assert expected(analysis, 0, "gate", Keep()) == Expected(gain=1, noise=0)
    assert expected(analysis, 0, "gate", Lossless()) == Expected(gain=1, noise=0)
    assert list(UNIFORM.values()) == sorted(UNIFORM.values(), reverse=True)
    assert 0.93 < LLOYD_MAX[5] / (PANTER_DITE * 4**-5) < 1
    assert ENTROPY_CODED[3] == pytest.approx(GISH_PIERCE * 4**-3, rel=1e-3)

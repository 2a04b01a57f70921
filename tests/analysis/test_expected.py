"""What is foretold of a codec from the tables, against what encoding measures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ders_core.analysis import (
    Analysis,
    analyze,
    expected,
    rank_for_energy,
)
from ders_core.analysis.similarity import BINS, REACH
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
from ders_core.compute.gaussian_error import (
    ENTROPY_CODED,
    GISH_PIERCE,
    LLOYD_MAX,
    PANTER_DITE,
    UNIFORM,
)
from ders_core.decompose.averages import around_mean
from ders_core.packed.open import open_checkpoint


def delta_codec(fields: dict[str, Any]) -> DeltaCodec:
    """The codec that a recipe's fields name, which must be one of deltas."""
    codec = make_codec(fields)
    assert isinstance(codec, DeltaCodec)
    return codec


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
        context = EncodeContext(group.dtype.torch, expert)
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
        {"codec": "entropy", "bits": 1, "rounding": "unbiased", "gain": "least_squares"},
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

"""What decomposition is said to save, against theory and against what the codec `entropy` takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ders_core.analysis import analyze, sampled_verdict
from ders_core.analysis.saving import SharedEnergy, expense
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.codecs import EncodeContext, Entropy
from ders_core.compute.gaussian_error import bits_of_entropy_coding, of_entropy_coding
from ders_core.demo.result import MOE
from ders_core.demo.unpack import TRAINED
from ders_core.packed.open import open_checkpoint


def test_bits_and_errors_are_inverse() -> None:
    bits = np.array([0.0, 0.1, 0.3, 1.0, 2.2, 3.0, 3.5, 9.0])
    errors = np.array([of_entropy_coding(float(each)) for each in bits])
    assert bits_of_entropy_coding(errors) == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("experts", [2, 8, 64])
def test_at_many_bits_it_is_the_ratio_of_norms(experts: int) -> None:
    """log2(‖W‖/‖Δ‖), less the base's own bits by its best error, r/(K−1) of the weights' energy
    (where the derivative of ½ log2(r + e) − log2(e)/2K vanishes)."""
    share = 1e-3
    with patch("ders_core.analysis.saving.PLAIN", 12.0):
        told = expense(SharedEnergy(experts, 1, 16, {1: share}))
    base = 0.5 * math.log2((1 - share) * (experts - 1) / share * math.pi * math.e / 6) / experts
    wanted = 12 + 0.5 * math.log2(share * experts / (experts - 1)) + base
    assert told.coded == pytest.approx(wanted, abs=0.02)
    assert told.kept == pytest.approx(12 + 0.5 * math.log2(share) + 16 / experts, abs=1e-3)


def test_bases_of_sets_are_chosen_where_they_take_less() -> None:
    one = expense(SharedEnergy(8, 1, 16, {1: 0.5}))
    both = expense(SharedEnergy(8, 1, 16, {1: 0.5, 2: 0.001}))
    assert both.coded < one.coded - 1
    assert both.coded == expense(SharedEnergy(8, 1, 16, {2: 0.001})).coded


def test_models_from_scratch_save_nothing(scratch_dir: Path, mixtral_dir: Path) -> None:
    source = open_checkpoint(scratch_dir)
    for verdict in (sampled_verdict(source), analyze(source, spectra="none").verdict):
        assert verdict.saving is not None
        assert abs(verdict.saving.bits) < 0.05
        assert "saves nothing" in verdict.sentence
        assert "base: none" in verdict.sentence
    source = open_checkpoint(mixtral_dir)
    quick, whole = sampled_verdict(source), analyze(source, spectra="none").verdict
    assert quick.saving is not None
    assert whole.saving is not None
    assert quick.saving.bits == pytest.approx(whole.saving.bits, abs=0.2)
    assert whole.saving.least <= whole.saving.bits <= whole.saving.most
    assert whole.saving.groups == len(source.groups())
    assert "sample" in quick.sentence
    assert "sample" not in whole.sentence
    assert f"{whole.saving.bits:.1f} bits" in whole.sentence


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(TRAINED / MOE)


def measured(group: ExpertGroup, deltas: float, base: float | None) -> float:
    """Σ(Ŵ−W)²/ΣW² of what `entropy` gives back in so many bits. base: bits of the mean; None: the
    weights themselves are coded."""
    weights = group.read()
    zeros = torch.zeros_like(weights[0])

    def coded(
        matrix: torch.Tensor, start: torch.Tensor, bits: float, gain: Any = None
    ) -> torch.Tensor:
        if bits < 0.02:
            return start
        codec, context = Entropy(bits=bits, gain=gain), EncodeContext(matrix.dtype, 0)
        return codec.unpack_as(torch.float32, codec.pack(matrix, start, context), start, context)

    start = zeros
    if base is not None:
        mean = weights.float().mean(0).to(weights.dtype)
        start = coded(mean, zeros, base).to(weights.dtype)
    error = sum(
        float((coded(weight, start, deltas, "unbiased").double() - weight.double()).square().sum())
        for weight in weights
    )
    return error / float(weights.double().square().sum())


@pytest.mark.parametrize(("projection", "bits"), [("up", 4.0), ("down", 4.0), ("gate", 6.5)])
def test_the_demo_has_the_same_error_at_the_bits_that_are_told(
    demo: Checkpoint, projection: str, bits: float
) -> None:
    """Half the logarithm of the ratio of two errors is by how many bits the figure is off. Weights
    of trained models have longer tails than Gaussian ones, and tables take some bytes: within a
    fifth of a bit, less than a tenth of what is saved."""
    group = demo.group(demo.moe_layers[0], projection)
    weights = group.read().double()
    share = float((weights - weights.mean(0)).square().sum() / weights.square().sum())
    experts = group.shape[0]
    with patch("ders_core.analysis.saving.PLAIN", bits):
        told = expense(SharedEnergy(experts, 1, 16, {1: share}))
    assert told.deltas > 0.2
    assert bits - told.coded > 2
    plain = measured(group, bits, None)
    shared = measured(group, told.deltas, experts * told.bases)
    off = 0.5 * math.log2(shared / plain)
    assert abs(off) < 0.2

"""Experts of zeros, tiny ones, equal ones, and a single one: cosines against float64."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.shell import ders

from ders_core.analysis import analyze, of_group, sampled_verdict
from ders_core.analysis.tables import square
from ders_core.analysis.verdict import mean_pair_cosine
from ders_core.checkpoint import Checkpoint

MakeCheckpoint = Callable[..., Checkpoint]


def cosines_of(weights: torch.Tensor) -> np.ndarray:
    """`[K, K]` in float64, from the definition; 0 with a vector of zeros."""
    flat = weights.flatten(1).double().numpy()
    norms = np.sqrt((flat**2).sum(1))
    products = norms[:, None] * norms[None, :]
    cosines: np.ndarray = np.divide(
        flat @ flat.T, products, out=np.zeros_like(products), where=products > 0
    )
    return cosines


def mean_of_pairs(cosines: np.ndarray) -> float:
    pairs = ~np.eye(len(cosines), dtype=bool)
    return float(cosines[pairs].mean())


def experts(kind: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(4)
    start = torch.randn(1, 48, 32, generator=random)
    weights = (start + 0.1 * torch.randn(5, 48, 32, generator=random)).bfloat16()
    match kind:
        case "zero":
            weights[1] = 0
        case "two zeros":
            weights[[1, 3]] = 0
        case "tiny":
            weights[1] = weights[1] * 1e-23
        case "tiny and unlike":
            weights[1] = torch.randn(48, 32, generator=random).bfloat16() * 1e-25
        case "same":
            weights[:] = weights[:1].clone()
        case "all zeros":
            weights[:] = 0
    return weights


KINDS = ["zero", "two zeros", "tiny", "tiny and unlike", "same", "all zeros"]


@pytest.mark.parametrize("kind", KINDS)
def test_mean_cosines_are_those_of_float64(kind: str, checkpoint_of: MakeCheckpoint) -> None:
    weights = experts(kind)
    wanted = cosines_of(weights)
    assert mean_pair_cosine(weights.flatten(1).float().numpy()) == pytest.approx(
        mean_of_pairs(wanted), abs=1e-9
    )
    checkpoint = checkpoint_of(weights)
    quick, tables = sampled_verdict(checkpoint), analyze(checkpoint)
    assert quick.mean_cosine == pytest.approx(mean_of_pairs(wanted), abs=0.02)  # of a few rows
    assert tables.verdict.mean_cosine == pytest.approx(mean_of_pairs(wanted), abs=1e-6)
    assert quick.verdict == tables.verdict.verdict
    found = 1 - square(of_group(tables.similarity, 0, "gate"), "one_minus_cos")
    pairs = ~np.eye(len(weights), dtype=bool)
    np.testing.assert_allclose(found[pairs], wanted[pairs], atol=1e-6)
    written = tables.to_json()
    assert "NaN" not in written
    assert "Infinity" not in written
    assert json.loads(written)["mean_cosine"] == tables.verdict.mean_cosine


def test_one_expert_has_nothing_to_be_compared_with(checkpoint_of: MakeCheckpoint) -> None:
    checkpoint = checkpoint_of(experts("")[:1])
    for verdict in (sampled_verdict(checkpoint), analyze(checkpoint).verdict):
        assert verdict.verdict == "single"
        assert "one expert" in verdict.sentence
        assert "%" not in verdict.sentence
        assert "cosine" not in verdict.short
    printed = ders("info", checkpoint.path)
    assert printed.returncode == 0
    assert "one expert in each layer" in printed.stdout
    assert "differ by" not in printed.stdout


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_mean_cosine_of_rows(rows: int) -> None:
    weights = torch.randn(rows, 40, generator=torch.Generator().manual_seed(rows))
    for scale in (1.0, 1e-30, 1e30):
        wanted = mean_of_pairs(cosines_of(weights)) if rows > 1 else 1.0
        assert mean_pair_cosine((weights * scale).numpy()) == pytest.approx(wanted, abs=1e-6)

"""How far correlations of few tokens are believed: against inputs whose moments are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.codec_support import context, gauss

from ders_core.codecs import Entropy, make_codec
from ders_core.codecs.curvature import Curvature
from ders_core.pipeline.believed import DOUBT, Inputs

OUT, WIDTH = 64, 96


def mixing() -> torch.Tensor:
    """Inputs are `[n, in]` of the normal distribution times this."""
    loud = torch.linspace(0.02, 2.0, WIDTH)
    turned, _ = torch.linalg.qr(gauss((WIDTH, WIDTH), 1, 1.0))
    other, _ = torch.linalg.qr(gauss((WIDTH, WIDTH), 2, 1.0))
    mixed: torch.Tensor = turned * loud @ other
    return mixed


def measured(tokens: int) -> torch.Tensor:
    """E[x xᵀ] of that many inputs."""
    x = (gauss((tokens, WIDTH), tokens, 1.0) @ mixing()).double()
    moments = (x.T @ x / tokens).float()
    return (moments + moments.T) / 2


def coded(moments: torch.Tensor) -> tuple[int, torch.Tensor, Curvature]:
    """(bytes, the error, what errors cost by these inputs), rounded so that later columns make up
    for errors."""
    delta = gauss((OUT, WIDTH), 3, 0.02)
    curvature = Curvature(
        moments.diagonal().clone(), torch.full((OUT,), float(moments.trace()) / OUT)
    )
    known = replace(context(torch.float32, 5), moments=moments, curvature=curvature)
    codec = make_codec(
        {"codec": "entropy", "steps": "sensitive", "knob": 3e-3, "rounding": "compensated"}
    )
    assert isinstance(codec, Entropy)
    parts = codec.encode(delta, known)
    error = codec.decode(parts, (OUT, WIDTH), known) - delta
    return parts["stream"].numel(), error, curvature


def cost_by(error: torch.Tensor, moments: torch.Tensor) -> float:
    """½ tr(E M Eᵀ), in float64: what the inputs lose of whose moments these are."""
    return float(((error.double() @ moments.double()) * error.double()).sum()) / 2


@pytest.mark.parametrize("tokens", [WIDTH, 3 * WIDTH, 10 * WIDTH])
def test_what_it_is_thought_to_cost_is_what_it_costs(tokens: int) -> None:
    """Of other inputs than those that were measured. Without doubt it is thought to be far less."""
    truth = (mixing().T.double() @ mixing().double()).float()
    moments = measured(tokens)
    ratios = []
    for each in (Inputs.of(moments.clone(), tokens).believed, moments):
        _, error, curvature = coded(each)
        ratios.append(OUT * float(curvature.cost(error, each)) / cost_by(error, truth))
    assert 0.8 < ratios[0] < 1.25
    assert ratios[1] < ratios[0] - 0.1


@pytest.mark.parametrize("tokens", [WIDTH, 3 * WIDTH])
def test_it_costs_less_at_the_same_bytes(tokens: int) -> None:
    """Half a bit an entry costs as much as halving errors."""
    truth = (mixing().T.double() @ mixing().double()).float()
    moments, merits = measured(tokens), []
    for each in (Inputs.of(moments.clone(), tokens).believed, moments):
        taken, error, _ = coded(each)
        merits.append(cost_by(error, truth) * 4 ** (8 * taken / error.numel()))
    assert merits[0] < 0.95 * merits[1]


def test_variances_stay() -> None:
    moments = measured(50)
    shrunken = Inputs.of(moments.clone(), 50).believed
    assert torch.equal(shrunken.diagonal(), moments.diagonal())
    assert torch.equal(shrunken, shrunken.T)
    assert float(shrunken[3, 7]) == pytest.approx(
        float(moments[3, 7]) / (1 + DOUBT * WIDTH / 50), rel=1e-6
    )
    diagonal = moments.diagonal().clone()
    assert Inputs.of(diagonal, 50).believed is diagonal


@pytest.mark.parametrize("tokens", [5, 50, 5000])
def test_errors_of_outputs_are_those_of_what_was_measured(tokens: int) -> None:
    """By other matrices than are kept, against float64."""
    moments, error = measured(50), gauss((OUT, WIDTH), seed=3, scale=0.1)
    wanted = torch.einsum("ri,ij,rj", error.double(), moments.double(), error.double())
    for given, exact in (
        (moments.clone(), float(wanted)),
        (moments.diagonal(), float((error.double().square() @ moments.diagonal().double()).sum())),
    ):
        found = Inputs.of(given, tokens).output_squared(error)
        assert found == pytest.approx(exact, rel=1e-4)

"""Compensated rounding within a number of bits: it stays within them, and costs less than rounding
to the nearest by what the correlation of inputs lets expect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments

from ders_core.codecs import EncodeContext, Entropy, make_codec
from ders_core.codecs.curvature import Curvature, correlation_of
from ders_core.codecs.fitting.compensated import succession_of
from ders_core.errors import RecipeError
from ders_core.pipeline.believed import Inputs
from ders_core.recipe import Recipe

OUT, WIDTH = 160, 128


def related(loose: bool = False) -> torch.Tensor:
    """E[x xᵀ] float32 of inputs that hang together. loose: hardly."""
    mixed = inputs(WIDTH) @ gauss((WIDTH, WIDTH), 4, WIDTH**-0.5)
    if loose:
        mixed = gauss((2000, WIDTH), 3, 1.0)
    return Inputs.of(second_moments(mixed), len(mixed)).believed


def known_of(moments: torch.Tensor, *, gradients: bool) -> EncodeContext:
    known = replace(context(torch.float32, 5), moments=moments)
    if not gradients:
        return known
    rows, columns = torch.exp(gauss((OUT,), 5, 1.0)), moments.diagonal().clone()
    return replace(known, curvature=Curvature(columns * float(rows.sum() / columns.sum()), rows))


def packed(known: EncodeContext, delta: torch.Tensor, **fields: Any) -> tuple[int, torch.Tensor]:
    """(bytes, what comes back)."""
    codec = make_codec({"codec": "entropy", **fields})
    assert isinstance(codec, Entropy)
    parts = codec.encode(delta, known)
    return parts["stream"].numel(), codec.decode(parts, (OUT, WIDTH), known)


def cost(error: torch.Tensor, known: EncodeContext) -> float:
    """½ Σ_i rows_i/Σ · E_i M E_iᵀ in float64, written out."""
    assert known.moments is not None
    rows, columns = torch.ones(OUT).double(), known.moments.diagonal().double()
    if known.curvature is not None:
        rows, columns = known.curvature.rows.double(), known.curvature.columns.double()
    root = columns.sqrt()
    metric = root[:, None] * correlation_of(known.moments).double() * root
    double = error.double()
    return float((rows / columns.sum()) @ ((double @ metric) * double).sum(1)) / 2


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("steps", ["even", "sensitive"])
@pytest.mark.parametrize("bits", [2.5, 6])
def test_errors_that_are_made_up_for_cost_less(bits: float, steps: str, gradients: bool) -> None:
    """At many bits and sensitive steps, by the mean of what is left of each column's error."""
    known, delta = known_of(related(), gradients=gradients), gauss((OUT, WIDTH), scale=0.02)
    taken, back = packed(known, delta, bits=bits, steps=steps, rounding="compensated")
    plain, nearest = packed(known, delta, bits=bits, steps=steps)
    limit = int(bits * delta.numel() / 8)
    assert 0.95 * limit < taken <= limit
    assert plain <= limit
    ratio = cost(back - delta, known) / cost(nearest - delta, known)
    assert known.moments is not None
    left = succession_of(known.moments).factor.diagonal().pow(-2)
    wanted = 2 ** float(left.log2().mean())
    assert wanted < 0.6
    if steps == "sensitive" and bits > 5:
        assert ratio == pytest.approx(wanted, rel=0.15)
    else:
        assert ratio < 0.9


@pytest.mark.parametrize("bits", [0.1, 0.5, 2])
def test_it_never_costs_more_than_the_nearest(bits: float) -> None:
    known, delta = known_of(related(loose=True), gradients=True), gauss((OUT, WIDTH), scale=0.02)
    losses = []
    for rounding in ("nearest", "compensated"):
        taken, back = packed(known, delta, bits=bits, steps="sensitive", rounding=rounding)
        assert taken <= bits * delta.numel() / 8
        losses.append(cost(back - delta, known))
    assert losses[1] <= losses[0] * 1.0001


@pytest.mark.parametrize("moments", ["none", "diagonal"])
def test_without_full_moments_it_is_the_nearest(moments: str) -> None:
    known, delta = context(torch.float32, 5), gauss((OUT, WIDTH))
    if moments == "diagonal":
        known = replace(known, moments=related().diagonal())
    found = packed(known, delta, bits=1.5, rounding="compensated")
    wanted = packed(known, delta, bits=1.5)
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])


def test_zeros_alone() -> None:
    known = known_of(related(), gradients=True)
    _, back = packed(known, torch.zeros(OUT, WIDTH), bits=1, rounding="compensated")
    assert not back.any()


def test_a_recipe_needs_moments_for_it() -> None:
    text = "name: x\nrules: [{codec: entropy, bits: 2, rounding: compensated}]\n"
    with pytest.raises(RecipeError, match="calibration"):
        Recipe.from_yaml(text)
    assert Recipe.from_yaml(text + "calibration: x.safetensors\n").needs_of_calibration == "inputs"

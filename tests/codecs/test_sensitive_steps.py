"""Rows that are far more sensitive than the others, as those of frequent tokens in an embedding."""

from __future__ import annotations

import pytest
import torch

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.sensitive_steps import LEAST_SHARE
from ders_core.errors import CodecError

OUT, WIDTH, LOUD = 512, 512, 60


def curvature(loud: float) -> Curvature:
    """Even, but for some rows."""
    rows = torch.ones(OUT)
    rows[:LOUD] = loud
    rows /= rows.sum()
    return Curvature(torch.full((WIDTH,), 1 / WIDTH), rows)


@pytest.mark.parametrize("rounding", ["nearest", "unbiased"])
def test_no_row_has_coarse_errors(rounding: str) -> None:
    """The steps asked for are below what codes can tell: the rows keep twelve bits, and not the few
    of codes that many multiples share."""
    known = curvature(1e9)
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, WIDTH, generator=random)
    floor = LEAST_SHARE * float(known.rows.mean())
    knob = 0.005 * (floor * float(known.columns[0]) / known.total) ** 0.5  # in usual rows 0.005
    codec = Entropy.model_validate({"knob": knob, "rounding": rounding, "steps": "sensitive"})
    context = EncodeContext(torch.float32, 5, curvature=known)
    zeros = torch.zeros_like(weight)
    error = (codec.unpack(codec.pack(weight, zeros, context), zeros, context) - weight).abs()
    largest = weight.abs().amax(1)
    assert float((error[:LOUD].amax(1) / largest[:LOUD]).max()) < 2**-11
    assert 0.002 < float(error[LOUD:].max()) < 0.008


def test_a_knob_too_small_for_most_rows_is_refused() -> None:
    known = curvature(1.0)
    weight = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(1))
    codec = Entropy.model_validate({"knob": 1e-12, "steps": "sensitive"})
    with pytest.raises(CodecError, match="too small"):
        codec.encode(weight, EncodeContext(torch.float32, 5, curvature=known))

"""Rows that are far more sensitive than the others, as those of frequent tokens in an embedding."""

from __future__ import annotations

import pytest
import torch

from ders_core.codecs import EncodeContext, Entropy
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.rounding import EXACT_CODES
from ders_core.codecs.fitting.sensitive_steps import LEAST_SHARE, steps_by_curvature
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


@pytest.mark.parametrize(("times", "refused"), [(1.0, False), (7.0, False), (9.0, True)])
def test_a_large_column_makes_all_rows_coarser(times: float, refused: bool) -> None:
    """Its entries are so many times as large as twelve bits hold, and only theirs are."""
    known = curvature(1.0)
    weight = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(1)) / 100
    steps = steps_by_curvature(known)
    weight[:, 5] = torch.from_numpy(steps.factors[0]) * float(steps.factors[1][5])
    knob = 1 / (times * (EXACT_CODES - 1))
    codec = Entropy.model_validate({"knob": knob, "steps": "sensitive"})
    context, zeros = EncodeContext(torch.float32, 5, curvature=known), torch.zeros_like(weight)
    if refused:
        with pytest.raises(CodecError, match="too small"):
            codec.pack(weight, zeros, context)
        return
    error = (codec.unpack(codec.pack(weight, zeros, context), zeros, context) - weight).abs()
    assert float((error[:, 5] / weight[:, 5]).max()) < 2**-11


def test_a_knob_too_small_for_most_rows_is_refused() -> None:
    known = curvature(1.0)
    weight = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(1))
    codec = Entropy.model_validate({"knob": 1e-12, "steps": "sensitive"})
    with pytest.raises(CodecError, match="too small"):
        codec.encode(weight, EncodeContext(torch.float32, 5, curvature=known))

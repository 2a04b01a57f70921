"""What makes a weight again and again gives what the codec gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss
from support.held_codecs import HELD_CODECS, HELD_SHAPE, LEVELS, STREAMED, HeldCase, HeldLevelsCase

from ders_core.codecs import DeltaCodec, LowRank, Quantized, Sparse
from ders_core.codecs.held_levels import Form
from ders_core.compute import kernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("codec", HELD_CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_codec(codec: DeltaCodec, stored: torch.dtype) -> None:
    """For any base and dtype; twice, since what was prepared must not change."""
    case = HeldCase.of(codec, stored)
    make = case.form.maker(case.own, HELD_SHAPE, case.context)
    assert make is not None
    for _ in range(2):
        for number, kind in enumerate(DTYPES):
            base = gauss(HELD_SHAPE, number).to(kind)
            for dtype in DTYPES:
                weight = make(base, dtype)
                assert weight.dtype is dtype
                assert torch.equal(weight, codec.unpack_as(dtype, case.parts, base, case.context))


def test_nothing_is_prepared_where_loops_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of factors, which are multiplied."""
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    for codec in (Quantized(bits=2, group_size=16), Sparse(drop_rate=0.9), LowRank(rank=2)):
        case = HeldCase.of(codec, torch.float32)
        assert case.form.maker(case.own, HELD_SHAPE, case.context) is None


@pytest.mark.parametrize("levels", [*LEVELS, STREAMED], ids=lambda case: case.codec.label)
def test_levels_are_held_in_each_way(levels: HeldLevelsCase) -> None:
    """As their cases say: else others would be tried twice."""
    case = HeldCase.of(levels.codec, torch.float32)
    form, delta = Form.read(case.own), case.form.decode(case.own, HELD_SHAPE, case.context)
    assert (form.kind, form.has_factors) == (levels.kind, levels.is_sensitive)
    assert (2 * int((delta == 0).sum()) > delta.numel()) == levels.most_are_zero


def test_of_a_stream_nothing_is_prepared() -> None:
    case = HeldCase.of(STREAMED.codec, torch.bfloat16)
    assert case.form.maker(case.own, HELD_SHAPE, case.context) is None
    base = gauss(HELD_SHAPE, 1).bfloat16()
    expected = STREAMED.codec.unpack(case.parts, base, case.context)
    assert torch.equal(case.form.unpack(case.own, base, case.context), expected)

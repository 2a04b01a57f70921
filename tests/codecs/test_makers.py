"""What makes a weight again and again gives what the codec gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss
from support.held_codecs import HELD_CODECS, HeldCase

from ders_core.codecs import DeltaCodec, LowRank, Quantized, Sparse
from ders_core.compute import kernels

SHAPE = (40, 96)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("codec", HELD_CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_codec(codec: DeltaCodec, stored: torch.dtype) -> None:
    """For any base and dtype; twice, since what was prepared must not change."""
    case = HeldCase.of(codec, SHAPE, stored)
    make = case.form.maker(case.own, SHAPE, case.context)
    assert make is not None
    for _ in range(2):
        for number, kind in enumerate(DTYPES):
            base = gauss(SHAPE, number).to(kind)
            for dtype in DTYPES:
                weight = make(base, dtype)
                assert weight.dtype is dtype
                assert torch.equal(weight, codec.unpack_as(dtype, case.parts, base, case.context))


def test_nothing_is_prepared_where_loops_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of factors, which are multiplied."""
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    for codec in (Quantized(bits=2, group_size=16), Sparse(drop_rate=0.9), LowRank(rank=2)):
        case = HeldCase.of(codec, SHAPE, torch.float32)
        assert case.form.maker(case.own, SHAPE, case.context) is None

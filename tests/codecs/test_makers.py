"""What makes a weight again and again gives what the codec gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import DeltaCodec, EncodeContext, Entropy, LowRank, Quantized, Sparse
from ders_core.compute import kernels

SHAPE = (40, 96)
CODECS: list[DeltaCodec] = [
    *(Quantized(bits=bits, group_size=16) for bits in (1, 3, 8)),
    Quantized(bits=2, grid="affine", group_size=24, scale_bits=8),
    Quantized(bits=3, grid="learned", group_size=16),
    Quantized(grid="ternary", group_size=16),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.8, value_bits=4),
    Sparse(drop_rate=0.9, method="magnitude", value_bits=8),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=0.4),
    Entropy(bits=1.3, rounding="unbiased"),
]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_codec(codec: DeltaCodec, stored: torch.dtype) -> None:
    """For any base and dtype; twice, since what was prepared must not change."""
    context = EncodeContext(stored, seed=3)
    held = codec.held_form(SHAPE)
    assert isinstance(held, DeltaCodec)
    parts = codec.encode(gauss(SHAPE), context)
    make = held.maker(codec.held_parts(parts, SHAPE, context), SHAPE, context)
    assert make is not None
    for _ in range(2):
        for number, kind in enumerate(DTYPES):
            base = gauss(SHAPE, number).to(kind)
            for dtype in DTYPES:
                weight = make(base, dtype)
                assert weight.dtype is dtype
                assert torch.equal(weight, codec.unpack_as(dtype, parts, base, context))


def test_nothing_is_prepared_where_loops_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of factors, which are multiplied."""
    context = EncodeContext(torch.float32, seed=3)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    for codec in (CODECS[0], CODECS[6], LowRank(rank=2)):
        held = codec.held_form(SHAPE)
        assert isinstance(held, DeltaCodec)
        parts = codec.held_parts(codec.encode(gauss(SHAPE), context), SHAPE, context)
        assert held.maker(parts, SHAPE, context) is None

"""What a model holds is multiplied and decoded on a device that nobody waits for."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss
from support.counted_device import DEVICE, counted_waits
from support.held_codecs import HELD_CODECS, HELD_SHAPE, HeldCase

from ders_core.codecs import Chain, DeltaCodec, Entropy, LowRank

CODECS: list[DeltaCodec] = [
    *HELD_CODECS,
    LowRank(rank=3),
    LowRank(rank=3, factor_bits=6),
    Chain(stages=(LowRank(rank=2, factor_bits=8), Entropy(bits=1))),
    Chain(stages=(Entropy(bits=1), LowRank(rank=2, factor_bits=8))),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_no_product_waits(codec: DeltaCodec, stored: torch.dtype) -> None:
    """Of one token and of several, and of the weight that a delta makes with its base."""
    case = HeldCase.of(codec, stored)
    form, context = case.form, case.context
    base, x = gauss(HELD_SHAPE, 1).to(stored), gauss((40, HELD_SHAPE[1]), 2)
    with torch.inference_mode(), counted_waits() as waits:
        there = {
            name: part if name in form.host_parts else part.to(DEVICE, non_blocking=True)
            for name, part in case.own.items()
        }
        far_base, far_x = base.to(DEVICE), x.to(DEVICE)
        products = [form.product(there, far_x[:count], HELD_SHAPE, context) for count in (1, 40)]
        weight = form.unpack(there, far_base, context)
        assert not waits, waits
        got = [product.cpu() for product in products], weight.cpu()
    delta = codec.decode(case.parts, HELD_SHAPE, context)
    for count, product in zip((1, 40), got[0], strict=True):
        expected = x[:count] @ delta.T
        assert float((product - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert torch.equal(got[1], codec.unpack(case.parts, base, context))

"""What a model holds is multiplied and decoded on a device that nobody waits for."""

from __future__ import annotations

import pytest
import torch
from support.codec_support import gauss
from support.counted_device import DEVICE, counted_waits

from ders_core.codecs import Chain, DeltaCodec, EncodeContext, Entropy, LowRank, Quantized, Sparse

SHAPE = (24, 48)
CODECS: list[DeltaCodec] = [
    *(Quantized(bits=bits, group_size=16) for bits in (1, 2, 4)),
    Quantized(bits=3, grid="learned", group_size=16),
    Quantized(grid="ternary", group_size=16, scale_bits=8),
    LowRank(rank=3),
    LowRank(rank=3, factor_bits=6),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.8, value_bits=4),
    Sparse(drop_rate=0.9, method="magnitude", value_bits=8),
    Sparse(pattern="2:4"),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=1.3, rounding="unbiased"),
    Chain(stages=(LowRank(rank=2, factor_bits=8), Entropy(bits=1))),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_no_product_waits(codec: DeltaCodec, stored: torch.dtype) -> None:
    """Of one token and of several, and of the weight that a delta makes with its base."""
    context = EncodeContext(stored, seed=5)
    held = codec.held_form(SHAPE)
    assert isinstance(held, DeltaCodec)
    parts = codec.held_parts(codec.encode(gauss(SHAPE), context), SHAPE, context)
    base, x = gauss(SHAPE, 1).to(stored), gauss((40, SHAPE[1]), 2)
    with torch.inference_mode(), counted_waits() as waits:
        there = {
            name: part if name in held.host_parts else part.to(DEVICE, non_blocking=True)
            for name, part in parts.items()
        }
        far_base, far_x = base.to(DEVICE), x.to(DEVICE)
        products = [held.product(there, far_x[:count], SHAPE, context) for count in (1, 40)]
        weight = held.unpack(there, far_base, context)
        assert not waits, waits
        got = [product.cpu() for product in products], weight.cpu()
    delta = held.decode(parts, SHAPE, context)
    for count, product in zip((1, 40), got[0], strict=True):
        expected = x[:count] @ delta.T
        assert float((product - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert float((got[1] - (base + delta).to(stored)).abs().max()) <= 2**-7

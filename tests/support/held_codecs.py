"""Codecs whose deltas a model holds, one for each way in which they are held and made whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from support.codec_support import gauss

from ders_core.codecs import DeltaCodec, EncodeContext, Entropy, Quantized, Sparse

HELD_CODECS: list[DeltaCodec] = [
    *(Quantized(bits=bits, group_size=16) for bits in (1, 3, 8)),
    Quantized(bits=2, grid="affine", group_size=24, scale_bits=8),
    Quantized(bits=3, grid="learned", group_size=16),
    Quantized(grid="ternary", group_size=16, scale_bits=8),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.8, value_bits=4),
    Sparse(drop_rate=0.9, method="magnitude", value_bits=8),
    Sparse(pattern="2:4"),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=0.4),  # the common level is not 0
    Entropy(bits=1.3, rounding="unbiased"),
]


@dataclass(frozen=True)
class HeldCase:
    """A normal delta `[out, in]` that a codec encoded. parts: as on disk. own: as `form` has it."""

    form: DeltaCodec
    parts: Mapping[str, torch.Tensor]
    own: Mapping[str, torch.Tensor]
    context: EncodeContext

    @classmethod
    def of(cls, codec: DeltaCodec, shape: tuple[int, int], stored: torch.dtype) -> HeldCase:
        form, context = codec.held_form(shape), EncodeContext(stored, seed=5)
        assert isinstance(form, DeltaCodec)
        parts = codec.encode(gauss(shape), context)
        return cls(form, parts, codec.held_parts(parts, shape, context), context)

"""Codecs whose deltas a model holds, one for each way in which they are held and made whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from support.codec_support import gauss

from ders_core.codecs import DeltaCodec, EncodeContext, Entropy, Quantized, Sparse
from ders_core.codecs.held_levels import DENSE, SPARSE, STREAM
from ders_core.codecs.testing.inputs import curvature

HELD_SHAPE = (150, 384)
"""Of deltas, large enough for each of these ways."""


@dataclass(frozen=True)
class HeldLevelsCase:
    """How levels of HELD_SHAPE are held. kind: as of `Form`. is_sensitive: rows and columns have
    steps of their own. most_are_zero: as most entries are."""

    codec: Entropy
    kind: int
    most_are_zero: bool = False

    @property
    def is_sensitive(self) -> bool:
        return self.codec.steps == "sensitive"


LEVELS = [
    HeldLevelsCase(Entropy(bits=0.3, rounding="unbiased"), SPARSE, most_are_zero=True),
    HeldLevelsCase(Entropy(bits=0.4), SPARSE),
    HeldLevelsCase(
        Entropy(bits=0.3, rounding="unbiased", steps="sensitive"), SPARSE, most_are_zero=True
    ),
    HeldLevelsCase(Entropy(bits=0.3, steps="sensitive"), SPARSE),
    HeldLevelsCase(Entropy(bits=1.3, rounding="unbiased"), DENSE, most_are_zero=True),
    HeldLevelsCase(Entropy(bits=3, rounding="unbiased", steps="sensitive"), DENSE),
]
STREAMED = HeldLevelsCase(Entropy(bits=7.9), STREAM)
"""What is read anew each time."""

HELD_CODECS: list[DeltaCodec] = [
    *(Quantized(bits=bits, group_size=16) for bits in (1, 3, 8)),
    Quantized(bits=2, grid="affine", group_size=24, scale_bits=8),
    Quantized(bits=3, grid="learned", group_size=16),
    Quantized(grid="ternary", group_size=16, scale_bits=8),
    Sparse(drop_rate=0.9),
    Sparse(drop_rate=0.8, value_bits=4),
    Sparse(drop_rate=0.9, method="magnitude", value_bits=8),
    Sparse(pattern="2:4"),
    *(case.codec for case in LEVELS),
]
"""All but streams, of which nothing is prepared, and which a device waits for."""


@dataclass(frozen=True)
class HeldCase:
    """A normal delta `[out, in]` that a codec encoded. parts: as on disk. own: as `form` has it."""

    form: DeltaCodec
    parts: Mapping[str, torch.Tensor]
    own: Mapping[str, torch.Tensor]
    context: EncodeContext

    @classmethod
    def of(cls, codec: DeltaCodec, stored: torch.dtype) -> HeldCase:
        """Of HELD_SHAPE."""
        form, context = codec.held_form(HELD_SHAPE), EncodeContext(stored, seed=5)
        assert isinstance(form, DeltaCodec)
        known = replace(context, curvature=curvature(HELD_SHAPE))
        parts = codec.encode(gauss(HELD_SHAPE), known)
        return cls(form, parts, codec.held_parts(parts, HELD_SHAPE, context), context)

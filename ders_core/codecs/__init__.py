"""Codecs: one file each, pure, exact about their bytes; each is imported when it is first used."""

from typing import TYPE_CHECKING

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import (
    CODECS,
    Codec,
    DeltaCodec,
    EncodeContext,
    Parts,
    codec_class,
    make_codec,
)
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.synthesis import combine
from ders_core.later import names_later

if TYPE_CHECKING:
    from ders_core.codecs.chain import Chain
    from ders_core.codecs.entropy import Entropy
    from ders_core.codecs.keep import Keep
    from ders_core.codecs.lossless import Lossless
    from ders_core.codecs.lowrank import LowRank
    from ders_core.codecs.quantized import Quantized
    from ders_core.codecs.sparse import Sparse

__all__ = [
    "CODECS",
    "Chain",
    "Choice",
    "Codec",
    "DeltaCodec",
    "DeltaStatistics",
    "EncodeContext",
    "Entropy",
    "Expected",
    "Keep",
    "Lossless",
    "LowRank",
    "Parts",
    "Quantized",
    "Sparse",
    "Strength",
    "codec_class",
    "combine",
    "make_codec",
]

__getattr__ = names_later(
    __name__,
    {
        ".chain": ("Chain",),
        ".entropy": ("Entropy",),
        ".keep": ("Keep",),
        ".lossless": ("Lossless",),
        ".lowrank": ("LowRank",),
        ".quantized": ("Quantized",),
        ".sparse": ("Sparse",),
    },
)

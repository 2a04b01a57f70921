"""Delta codecs: one file each, pure, exact about their bytes."""

from ders_core.codecs.base import (
    CODECS,
    DeltaCodec,
    EncodeContext,
    Parts,
    codec_class,
    explain,
    make_codec,
)
from ders_core.codecs.keep import Keep
from ders_core.codecs.lowrank import LowRank
from ders_core.codecs.quantized import Quantized
from ders_core.codecs.sparse import Sparse

__all__ = [
    "CODECS",
    "DeltaCodec",
    "EncodeContext",
    "Keep",
    "LowRank",
    "Parts",
    "Quantized",
    "Sparse",
    "codec_class",
    "explain",
    "make_codec",
]

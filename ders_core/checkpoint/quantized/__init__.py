"""Checkpoints whose weights are stored as codes and scales: recognised, read, or refused by name.

A scheme that is read is one file with a `Scheme` and one entry in `detection.SCHEMES`; a format
that is not read is one entry in `refused.REFUSED`.
"""

from ders_core.checkpoint.quantized.detection import SCHEMES, declared, detect
from ders_core.checkpoint.quantized.fp8 import Fp8
from ders_core.checkpoint.quantized.mxfp4 import Mxfp4
from ders_core.checkpoint.quantized.refused import REFUSED, Refused
from ders_core.checkpoint.quantized.scheme import QuantizedWeight, Scheme

__all__ = [
    "REFUSED",
    "SCHEMES",
    "Fp8",
    "Mxfp4",
    "QuantizedWeight",
    "Refused",
    "Scheme",
    "declared",
    "detect",
]

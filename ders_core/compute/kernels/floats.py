"""Floats of 16 and 32 bits as loops see them: by their bits, uint16 or uint32.

kind: one of the numbers below. Conversions are torch's: exact to float32, and from it to the
nearest, ties to even; what is no number becomes the one quiet NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import part_apart

BFLOAT16, FLOAT16, FLOAT32 = 0, 1, 2

# in float32's bits
SIGN, INFINITY = np.uint32(0x80000000), np.uint32(0x7F800000)
HIDDEN_HALF = np.uint32(0x7FFF)
TO_HALF = np.uint32((127 - 15) << 23)
"""What exponents of float16 are less by."""
HALF_LEAST, HALF_BEYOND = np.uint32((127 - 14) << 23), np.uint32((127 + 16) << 23)
"""The least normal float16, and the power of two that it does not reach."""
HALF_UNIT = np.float32(2.0**-24)
"""The least float16 above zero. One half has the same distance to its next float32."""
ONE_HALF = np.float32(0.5)


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """The float32 that has these bits, uint32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def bits_of(context: Any, value: Any) -> Any:
    """The bits of a float32, uint32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], target.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@part_apart
def widen(stored: np.unsignedinteger, kind: int) -> np.float32:
    """The float32 that is the stored float."""
    bits = np.uint32(stored)
    if kind == BFLOAT16:
        value = float_of(np.uint32(bits << np.uint32(16)))
    elif kind == FLOAT16:
        sign = np.uint32(np.uint32(bits << np.uint32(16)) & SIGN)
        size = np.uint32(bits & np.uint32(0x7FFF))
        usual = np.uint32(np.uint32(size << np.uint32(13)) + TO_HALF)
        if size >= np.uint32(0x7C00):  # infinity, or no number
            usual = np.uint32(usual + TO_HALF)
        tiny = np.float32(np.float32(np.int32(size)) * HALF_UNIT)
        magnitude = float_of(usual) if size >= np.uint32(0x400) else tiny
        value = float_of(np.uint32(bits_of(magnitude) | sign))
    else:
        value = float_of(bits)
    return value


@part_apart
def narrow(value: np.float32, kind: int) -> np.uint32:
    """The bits of the stored float that is nearest to a value."""
    bits = bits_of(value)
    size = np.uint32(bits & ~SIGN)
    if kind == BFLOAT16:
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(np.uint32(bits + HIDDEN_HALF + odd) >> np.uint32(16))
        stored = np.uint32(0x7FC0) if size > INFINITY else rounded
    elif kind == FLOAT16:
        sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
        odd = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
        usual = np.uint32(np.uint32(size - TO_HALF + np.uint32(0xFFF) + odd) >> np.uint32(13))
        tiny = np.uint32(bits_of(np.float32(float_of(size) + ONE_HALF)) - bits_of(ONE_HALF))
        stored = usual if size >= HALF_LEAST else tiny
        stored = np.uint32(0x7C00) if size >= HALF_BEYOND else stored
        stored = np.uint32(0x7E00) if size > INFINITY else stored
        stored = np.uint32(stored | sign)
    else:
        stored = bits
    return stored

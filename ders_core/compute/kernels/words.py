"""Numbers of 64 bits, as processors look at them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ders_core.compute.kernels.loop import part_apart

WORD_BYTES = 8


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(context: Any, word: Any) -> Any:
    """How many zeros are below the lowest one, of a uint64 that has one."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@part_apart
def word_at(packed: np.ndarray, begin: int) -> np.uint64:
    """The bytes of uint8 `[n]` from one on, the first lowest; zeros beyond the end."""
    word = np.uint64(0)
    if begin + WORD_BYTES <= packed.size:
        for number in range(WORD_BYTES):
            word |= np.uint64(np.uint64(packed[begin + number]) << np.uint64(8 * number))
    else:
        for number in range(packed.size - begin):
            word |= np.uint64(np.uint64(packed[begin + number]) << np.uint64(8 * number))
    return word

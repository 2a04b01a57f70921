"""Dtype, shape and bytes of a tensor, without its values; and dtypes by their names on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

NARROW_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of an element of the dtypes that share bytes among elements. torch has no such dtype, so
their bytes are read."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of a tensor, and so its bytes.

    declared: dtype and shape as the header of its file gives them, of a tensor of `NARROW_BITS`;
    then the tensor is its bytes, uint8 `[bytes]`. None for every other tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    declared: tuple[str, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...]) -> TensorSpec:
        """Of a dtype by its name on disk. Raises KeyError for an unknown name, and ValueError if
        the elements do not fill whole bytes."""
        if name not in NARROW_BITS:
            return cls(DTYPES[name], shape)
        size, rest = divmod(math.prod(shape) * NARROW_BITS[name], 8)
        if rest:
            raise ValueError(f"{name} {list(shape)} does not fill whole bytes")
        return cls(torch.uint8, (size,), (name, shape))

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """The dtype's name on disk, and the shape in the header."""
        return self.declared or (NAMES[self.dtype], self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

"""Dtype, shape and bytes of a tensor, without its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ders_core.files.dtype import Dtype
from ders_core.later import torch

NARROW_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Bits of an element of the dtypes that share bytes among elements. torch has no such dtype, so
their bytes are read."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Dtype and shape of a tensor, and so its bytes.

    declared: dtype and shape as the header of its file gives them, of a tensor of `NARROW_BITS`;
    then the tensor is its bytes, uint8 `[bytes]`. None for every other tensor.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    declared: tuple[str, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...]) -> TensorSpec:
        """Of a dtype by its name on disk. Raises KeyError for an unknown name, and ValueError if
        the elements do not fill whole bytes."""
        if name not in NARROW_BITS:
            return cls(Dtype[name], shape)
        size, rest = divmod(math.prod(shape) * NARROW_BITS[name], 8)
        if rest:
            raise ValueError(f"{name} {list(shape)} does not fill whole bytes")
        return cls(Dtype.U8, (size,), (name, shape))

    @classmethod
    def like(cls, tensor: torch.Tensor) -> TensorSpec:
        """Of a tensor in memory. Raises KeyError for a dtype that no file can hold."""
        return cls(Dtype.of(tensor.dtype), tuple(tensor.shape))

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """The dtype's name on disk, and the shape in the header."""
        return self.declared or (self.dtype.name, self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

"""Dtypes by their names in safetensors files, and their sizes; torch's are looked up when asked."""

from __future__ import annotations

from enum import Enum
from functools import cache, cached_property
from typing import TYPE_CHECKING

from ders_core.later import torch

if TYPE_CHECKING:
    from torch import dtype as TorchDtype  # noqa: N812


class Dtype(Enum):
    """A dtype of stored tensors. Its name is the one in headers; its value is torch's name."""

    F64 = "float64"
    F32 = "float32"
    F16 = "float16"
    BF16 = "bfloat16"
    F8_E4M3 = "float8_e4m3fn"
    F8_E4M3FNUZ = "float8_e4m3fnuz"
    F8_E5M2 = "float8_e5m2"
    F8_E5M2FNUZ = "float8_e5m2fnuz"
    F8_E8M0 = "float8_e8m0fnu"
    C64 = "complex64"
    I64 = "int64"
    I32 = "int32"
    I16 = "int16"
    I8 = "int8"
    U8 = "uint8"
    BOOL = "bool"
    U16 = "uint16"
    U32 = "uint32"
    U64 = "uint64"

    itemsize: int
    """Bytes of an element."""
    is_float: bool
    """Whether the elements are real floating-point numbers."""

    def __init__(self, of_torch: str) -> None:
        digits = "".join(filter(str.isdigit, of_torch.partition("_")[0]))
        self.itemsize = int(digits or 8) // 8
        self.is_float = "float" in of_torch

    def __hash__(self) -> int:
        return id(self)  # one object each; headers hold 100,000 of them

    @classmethod
    def of(cls, dtype: TorchDtype) -> Dtype:
        """torch's dtype. Raises KeyError if no file can hold it."""
        return _by_torch()[dtype]

    @cached_property
    def torch(self) -> TorchDtype:
        """The same in torch, which is imported for it."""
        found: TorchDtype = getattr(torch, self.value)
        return found


@cache
def _by_torch() -> dict[TorchDtype, Dtype]:
    return {dtype.torch: dtype for dtype in Dtype}

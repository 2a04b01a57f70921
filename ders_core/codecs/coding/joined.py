"""Tensors of several dtypes one after another in a tensor of bytes; in memory only.

Models are moved from one dtype to another with all floats that they hold. What is in bytes stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from ders_core.compute.buffers import fresh
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

ALIGNED = 8
"""Bytes of the widest numbers that loops read."""


def joined_bytes(specs: Sequence[TensorSpec]) -> int:
    """What tensors of these dtypes and shapes take."""
    return sum(_aligned(spec.nbytes) for spec in specs)


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 `[n]` on the CPU. tensors: contiguous."""
    specs = [TensorSpec.like(tensor) for tensor in tensors]
    joined, begin = fresh((joined_bytes(specs),), torch.uint8), 0
    for tensor, spec in zip(tensors, specs, strict=True):
        end = begin + _aligned(spec.nbytes)
        joined[begin : begin + spec.nbytes] = tensor.reshape(-1).view(torch.uint8)
        joined[begin + spec.nbytes : end] = 0
        begin = end
    return joined


def split(joined: torch.Tensor, specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    """The first tensors of what `join` made; they share its memory."""
    tensors, begin = [], 0
    for spec in specs:
        piece = joined[begin : begin + spec.nbytes]
        tensors.append(piece.view(spec.dtype.torch).view(spec.shape))
        begin += _aligned(spec.nbytes)
    return tensors


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED

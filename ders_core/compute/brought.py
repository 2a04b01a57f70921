"""Tensors that come from a GPU to the CPU together: each copy is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from ders_core.later import torch

LARGE = 16 << 20
"""Bytes from which on a tensor comes alone: its copy takes longer than it is waited for."""

ALIGNMENT = 16
"""Bytes; where a tensor begins among others, so that any dtype can be read there."""


def bring_together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the CPU, contiguous: those of a GPU below `LARGE` by one copy, as views
    of one memory."""
    small = [each.device.type != "cpu" and each.nbytes < LARGE for each in tensors]
    joined = iter(_joined([*compress(tensors, small)]))
    return [
        next(joined) if is_small else tensor.cpu().contiguous()
        for tensor, is_small in zip(tensors, small, strict=True)
    ]


def _joined(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not tensors:
        return []
    pieces = list[torch.Tensor]()
    for tensor in tensors:
        piece = tensor.reshape(-1).view(torch.uint8)
        pieces += [piece, piece.new_zeros(-len(piece) % ALIGNMENT)]
    sizes = [len(piece) for piece in pieces]
    together = torch.cat(pieces).cpu().split(sizes)[::2]
    return [
        piece.view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(together, tensors, strict=True)
    ]

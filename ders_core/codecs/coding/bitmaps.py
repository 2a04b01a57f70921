"""Sorted positions as a bitmap: a bit for each that is possible."""

from __future__ import annotations

from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import at_least
from ders_core.later import torch


def bitmap_of(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: int64 `[n]`, ascending and distinct, in [0, size). Returns uint8 of ⌈size / 8⌉
    bytes, the first position in a byte's lowest bit."""
    if kernels.takes(positions):
        from ders_core.compute.kernels import bitmaps

        packed = torch.zeros(packed_bytes(size, 1), dtype=torch.uint8)
        bitmaps.mark(positions.numpy(), packed.numpy())
        return packed
    bits = torch.zeros(size, dtype=torch.uint8, device=positions.device)
    bits[positions] = 1
    return pack(bits, 1)


def positions_in(bitmap: torch.Tensor, size: int, most: int) -> torch.Tensor:
    """The first `most` positions, int64, ascending; fewer if it has fewer. bitmap: uint8 of at
    least ⌈size / 8⌉ bytes; bits beyond `size` are not looked at."""
    if kernels.takes(bitmap):
        from ders_core.compute.kernels import bitmaps

        positions = fresh((most,), torch.int64)
        return positions[: bitmaps.find(bitmap.numpy(), size, positions.numpy())]
    return at_least(unpack(bitmap, 1, size, torch.uint8), 1)[:most]

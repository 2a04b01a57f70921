"""Codes of 1, 2, 4 or 8 bits side by side in bytes, the first in a byte's lowest bits; in memory
only: the code at any place is found in one byte, where planes have it in several."""

from __future__ import annotations

from ders_core.codecs.coding.packing import BYTE
from ders_core.later import torch

WIDTHS = (1, 2, 4, 8)


def width_of(count: int) -> int:
    """Bits of codes that tell so many things apart, at most 256."""
    return next(bits for bits in WIDTHS if count <= 1 << bits)


def small_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return -(-count * bits // BYTE)


def pack_small(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes: uint8 `[n]`, below 2^bits. Returns uint8 of `small_bytes` length."""
    each = BYTE // bits
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % each)).view(-1, each)
    packed = padded[:, 0].clone()
    for place in range(1, each):
        packed |= padded[:, place] << (place * bits)
    return packed


def unpack_small(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse: uint8 `[count]`."""
    shifts = [packed >> (place * bits) for place in range(BYTE // bits)]
    return (torch.stack(shifts, 1).view(-1)[:count]) & ((1 << bits) - 1)

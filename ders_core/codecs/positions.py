"""Sorted positions in the smaller of two exact forms: a bitmap, or Elias-Fano.

Elias-Fano (Fano 1971, Elias 1974) keeps the low bits of each position as they are and the high bits
in unary; it takes about 2 + log2(size / count) bits a position, within half a bit of the entropy.
Both sizes are known from `size` and `count` alone, so the reader knows which form it reads.
"""

from __future__ import annotations

import torch

from ders_core.codecs.packing import pack, packed_bytes, unpack


def _low_bits(size: int, count: int) -> int:
    return max((size // count).bit_length() - 1, 0) if count else 0


def _high_length(size: int, count: int) -> int:
    """Bits of the unary half: one for each position, one for each step of the high part."""
    return count + (max(size - 1, 0) >> _low_bits(size, count)) + 1


def _elias_fano_bytes(size: int, count: int) -> int:
    low = packed_bytes(count, _low_bits(size, count))
    return low + packed_bytes(_high_length(size, count), 1)


def positions_bytes(size: int, count: int) -> int:
    """Bytes that `count` positions in [0, size) take."""
    return min(packed_bytes(size, 1), _elias_fano_bytes(size, count)) if count else 0


def encode_positions(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: int64 `[count]`, ascending and distinct, in [0, size). Returns uint8 bytes."""
    count = positions.numel()
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=positions.device)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        return pack(_bitmap(positions, size), 1)
    low = _low_bits(size, count)
    ranks = torch.arange(count, dtype=torch.int64, device=positions.device)
    unary = _bitmap((positions >> low) + ranks, _high_length(size, count))
    return torch.cat([pack(positions & ((1 << low) - 1), low), pack(unary, 1)])


def decode_positions(packed: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The inverse of `encode_positions`: int64 `[count]`, or fewer if `packed` is damaged."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        return unpack(packed, 1, size, torch.uint8).nonzero().flatten()[:count]
    low = _low_bits(size, count)
    split = packed_bytes(count, low)
    unary = unpack(packed[split:], 1, _high_length(size, count), torch.uint8)
    high = unary.nonzero().flatten()[:count]
    high = high - torch.arange(high.numel(), device=packed.device)
    if high.numel() < count:
        return high  # damaged; the caller sees that some are missing
    return (high << low) | unpack(packed[:split], low, count, torch.int64)


def _bitmap(positions: torch.Tensor, size: int) -> torch.Tensor:
    bitmap = torch.zeros(size, dtype=torch.uint8, device=positions.device)
    bitmap[positions] = 1
    return bitmap

"""Gaps between sorted positions in Rice code (Rice 1979): the low k bits of each gap as they are,
the rest in unary, as many zeros and a one."""

from __future__ import annotations

from ders_core.codecs.coding.bitmaps import bitmap_of, positions_in
from ders_core.codecs.coding.packing import BYTE, pack, packed_bytes, unpack
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values
from ders_core.later import torch


def unary_length(positions: torch.Tensor, low_bits: int) -> int:
    """Bits of the unary half: one for each position, and the high parts of all gaps.

    positions: int64 `[n]`, ascending and distinct, from 0 on.
    """
    count = positions.numel()
    if kernels.takes(positions):
        from ders_core.compute.kernels import rice

        return count + rice.high_sum(positions.numpy(), low_bits)
    gaps = _gaps(positions)
    step = chunk_values(gaps.device)
    return count + sum(int((piece >> low_bits).sum()) for piece in gaps.split(step))


def encode(positions: torch.Tensor, low_bits: int) -> torch.Tensor:
    """uint8: the low bits of all gaps in planes, then the unary half. positions: as of
    `unary_length`, at least one."""
    if low_bits <= BYTE and kernels.takes(positions):
        from ders_core.compute.kernels import rice

        low = fresh(positions.shape, torch.uint8)
        length = unary_length(positions, low_bits)
        unary = torch.zeros(packed_bytes(length, 1), dtype=torch.uint8)
        rice.split(positions.numpy(), low_bits, low.numpy(), unary.numpy())
        return torch.cat([pack(low, low_bits), unary])
    gaps = _gaps(positions)
    ends = (gaps >> low_bits).add_(1).cumsum_(0).sub_(1)  # of each unary number
    unary = bitmap_of(ends, int(ends[-1]) + 1)
    return torch.cat([pack(gaps & ((1 << low_bits) - 1), low_bits), unary])


def decode(packed: torch.Tensor, low_bits: int, count: int) -> torch.Tensor | None:
    """The inverse: int64 `[count]`, ascending; None if `packed` does not hold as many. packed: at
    least the low bits of `count` gaps."""
    split = packed_bytes(count, low_bits)
    unary = packed[split:]
    if low_bits <= BYTE and kernels.takes(packed):
        from ders_core.compute.kernels import rice

        low = unpack(packed[:split], low_bits, count, torch.uint8)
        positions = fresh((count,), torch.int64)
        found = rice.join(unary.numpy(), low.numpy(), low_bits, positions.numpy())
        return positions if found == count else None
    ends = positions_in(unary, 8 * unary.numel(), count + 1)
    if ends.numel() != count:
        return None
    gaps = _gaps(ends).bitwise_left_shift_(low_bits)
    gaps |= unpack(packed[:split], low_bits, count, torch.int64)
    return gaps.add_(1).cumsum_(0).sub_(1)


def _gaps(positions: torch.Tensor) -> torch.Tensor:
    """How many numbers are between neighbours, and before the first: int64 `[count]`."""
    gaps = positions - 1
    gaps[1:] -= positions[:-1]
    gaps[:1] += 1
    return gaps

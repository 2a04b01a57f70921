"""Small integers packed tight: bit planes of eight values a byte, or five trits a byte."""

from __future__ import annotations

from functools import cache

from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import chunk_values, pieces
from ders_core.compute.sent import sent
from ders_core.errors import CodecError
from ders_core.later import np, torch

CHUNK = 1 << 17
"""Values at a time on the CPU; a multiple of 8."""

BYTE = 8
"""Bits of what loops pack."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return (count + 7) // 8 * bits


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """values: integers `[n]` in [0, 2**bits), bits 0 to 62. Returns uint8 of `packed_bytes` length.

    Plane k holds bit k of every value, the first of eight values in a byte's lowest bit.
    """
    packed = torch.empty(
        packed_bytes(values.numel(), bits), dtype=torch.uint8, device=values.device
    )
    pack_piece(values, bits, packed, 0, values.numel())
    return packed


def pack_piece(
    values: torch.Tensor, bits: int, packed: torch.Tensor, begin: int, count: int
) -> None:
    """Write into what `pack` makes of `count` values those from `begin` on, a multiple of 8."""
    stride = (count + 7) // 8
    if bits <= BYTE and kernels.takes(values, packed):
        from ders_core.compute.kernels import planes

        planes.pack(values.to(torch.uint8).numpy(), bits, packed.numpy(), begin, stride)
        return
    for piece in pieces(values.numel(), chunk_values(values.device, CHUNK)):
        chunk = values[piece]
        for bit in range(bits):
            plane = _packed_bits(chunk & (1 << bit))
            first = bit * stride + (begin + piece.start) // 8
            packed[first : first + plane.numel()] = plane


def unpack(packed: torch.Tensor, bits: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `pack`: `[count]` integers of `dtype`, which must hold 2**bits − 1."""
    stride = (count + 7) // 8
    is_whole = packed.numel() >= packed_bytes(count, bits)
    if bits <= BYTE and is_whole and kernels.takes(packed):
        from ders_core.compute.kernels import planes

        codes = fresh((count,), torch.uint8)
        planes.unpack_planes(packed.numpy(), bits, codes.numpy())
        return codes.to(dtype)
    values = torch.empty(stride * 8, dtype=dtype, device=packed.device)
    for piece in pieces(stride, chunk_values(packed.device, CHUNK) // 8):
        chunk = values[8 * piece.start : 8 * piece.stop].zero_()
        for bit in range(bits):
            plane = packed[bit * stride + piece.start : bit * stride + piece.stop]
            chunk |= _unpacked_bits(plane).to(dtype) << bit
    return values[:count]


def _packed_bits(values: torch.Tensor) -> torch.Tensor:
    """Which of `values` `[n]` are not 0: uint8 `[⌈n / 8⌉]`, the first in a byte's lowest bit."""
    if values.device.type == "cpu":  # numpy does it ten times as fast
        numbers = values.numpy()
        flags = numbers if numbers.itemsize == 1 else numbers != 0
        return torch.from_numpy(np.packbits(flags, bitorder="little"))
    bits = (values != 0).to(torch.uint8)
    padded = torch.nn.functional.pad(bits, (0, -bits.numel() % 8))
    weights = (1 << torch.arange(8, dtype=torch.int32, device=bits.device)).to(torch.uint8)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def _unpacked_bits(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `_packed_bits`: uint8 `[8 * n]`, 0 and 1."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little"))
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).view(-1)


TRITS = 5
"""Trits in a byte: 3⁵ = 243."""


def packed_trits_bytes(count: int) -> int:
    """Bytes that `count` values of three states take."""
    return -(-count // TRITS)


def pack_trits(values: torch.Tensor) -> torch.Tensor:
    """values: integers `[n]`, 0 to 2. Returns uint8, the first of five values the lowest digit."""
    packed = torch.empty(
        packed_trits_bytes(values.numel()), dtype=torch.uint8, device=values.device
    )
    pack_trits_piece(values, packed, 0)
    return packed


def pack_trits_piece(values: torch.Tensor, packed: torch.Tensor, begin: int) -> None:
    """Write into what `pack_trits` makes of all values those from `begin` on, a multiple of 5."""
    if values.dtype == torch.uint8 and kernels.takes(values, packed):
        from ders_core.compute.kernels import planes

        planes.pack_trits(values.numpy(), packed.numpy(), begin)
        return
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.numel() % TRITS))
    piece = (padded.view(-1, TRITS) * _powers(values.device)).sum(1, dtype=torch.uint8)
    packed[begin // TRITS : begin // TRITS + piece.numel()] = piece


def unpack_trits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The inverse of `pack_trits`: uint8 `[count]`. Raises CodecError for bytes that hold none, if
    they are on the CPU (see `Codec.check`)."""
    if packed.device.type == "cpu":
        check_trits(packed)
    return (packed[:, None] // _powers(packed.device) % 3).view(-1)[:count]


@cache
def _powers(device: torch.device) -> torch.Tensor:
    """Of 3, one for each trit of a byte."""
    return sent(torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8), device)


def check_trits(packed: torch.Tensor) -> None:
    """Raise CodecError for bytes that hold no trits."""
    if packed.numel() and int(packed.max()) >= 3**TRITS:
        raise CodecError("the stored codes are damaged; copy the file again")

"""Small integers packed tight: bit planes of eight values a byte, or five trits a byte."""

from __future__ import annotations

import torch

from ders_core.errors import CodecError

CHUNK = 1 << 20  # values; a multiple of 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return (count + 7) // 8 * bits


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """values: integers `[n]` in [0, 2**bits), bits 0 to 62. Returns uint8 of `packed_bytes` length.

    Plane k holds bit k of every value, the first of eight values in a byte's lowest bit.
    """
    count = values.numel()
    stride = (count + 7) // 8
    packed = torch.empty(bits * stride, dtype=torch.uint8, device=values.device)
    weights = (1 << torch.arange(8, dtype=torch.int32, device=values.device)).to(torch.uint8)
    for begin in range(0, count, CHUNK):
        chunk = values[begin : begin + CHUNK]
        padding = -chunk.numel() % 8
        if padding:
            chunk = torch.nn.functional.pad(chunk, (0, padding))
        for bit in range(bits):
            plane = ((chunk >> bit) & 1).to(torch.uint8).view(-1, 8)
            first = bit * stride + begin // 8
            packed[first : first + plane.shape[0]] = (plane * weights).sum(1, dtype=torch.uint8)
    return packed


def unpack(packed: torch.Tensor, bits: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `pack`: `[count]` integers of `dtype`, which must hold 2**bits − 1."""
    stride = (count + 7) // 8
    values = torch.empty(stride * 8, dtype=dtype, device=packed.device)
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    for begin in range(0, stride, CHUNK // 8):
        end = min(begin + CHUNK // 8, stride)
        chunk = torch.zeros(end - begin, 8, dtype=dtype, device=packed.device)
        for bit in range(bits):
            plane = packed[bit * stride + begin : bit * stride + end, None]
            chunk |= ((plane >> shifts) & 1).to(dtype) << bit
        values[begin * 8 : end * 8] = chunk.view(-1)
    return values[:count]


TRITS = 5
"""Trits in a byte: 3⁵ = 243."""


def packed_trits_bytes(count: int) -> int:
    """Bytes that `count` values of three states take."""
    return -(-count // TRITS)


def pack_trits(values: torch.Tensor) -> torch.Tensor:
    """values: integers `[n]`, 0 to 2. Returns uint8, the first of five values the lowest digit."""
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.numel() % TRITS))
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=values.device)
    return (padded.view(-1, TRITS) * powers).sum(1, dtype=torch.uint8)


def unpack_trits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The inverse of `pack_trits`: uint8 `[count]`. Raises CodecError for bytes that hold none."""
    if packed.numel() and int(packed.max()) >= 3**TRITS:
        raise CodecError("the stored codes are damaged; copy the file again")
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=packed.device)
    return (packed[:, None] // powers % 3).view(-1)[:count]

"""Small integers packed tight: bit planes of eight values a byte."""

from __future__ import annotations

import torch

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

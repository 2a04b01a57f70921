"""N:M patterns: of each M neighbours in a row N stay. A block's pattern is a number.

All masks of M bits with N ones are numbered in ascending order, so a block takes ⌈log2 C(M, N)⌉
bits: 3 for 2:4, where the form of the hardware takes 4.
"""

from __future__ import annotations

import math
from functools import cache

from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.compute.sent import sent
from ders_core.errors import CodecError
from ders_core.later import torch

LARGEST_BLOCK = 16


def parse_pattern(text: str) -> tuple[int, int]:
    """'2:4' as (2, 4). Raises ValueError for anything else."""
    kept, colon, block = text.partition(":")
    if not colon or not kept.isdecimal() or not block.isdecimal():
        raise ValueError(f"{text!r} must be N:M, such as 2:4")
    if not 1 <= int(kept) < int(block) <= LARGEST_BLOCK:
        raise ValueError(f"{text!r} must keep 1 or more of at most {LARGEST_BLOCK}, and drop some")
    return int(kept), int(block)


def pattern_bytes(blocks: int, kept: int, block: int) -> int:
    return packed_bytes(blocks, _bits(kept, block))


def choose_pattern(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """scores: `[blocks, M]`. The N largest of each block, ascending: int64 `[blocks, N]`; among
    equals the first ones."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return order.sort(dim=1).values


def encode_pattern(places: torch.Tensor, block: int) -> torch.Tensor:
    """places: int64 `[blocks, N]`, ascending in each row, below M = `block`. Returns uint8."""
    kept = places.shape[1]
    masks = (1 << places).sum(1)
    numbers = _numbers(kept, block, places.device)[masks]
    return pack(numbers, _bits(kept, block))


def decode_pattern(packed: torch.Tensor, blocks: int, kept: int, block: int) -> torch.Tensor:
    """The inverse of `encode_pattern`. Raises CodecError if `packed` is damaged and on the CPU (see
    `Codec.check`)."""
    numbers, places = _unpacked(packed, blocks, kept, block), _places(kept, block, packed.device)
    if numbers.device.type == "cpu":
        _check_numbers(numbers, len(places))
    return places[numbers.long().clamp_max(len(places) - 1)]


def check_patterns(packed: torch.Tensor, blocks: int, kept: int, block: int) -> None:
    """Raise CodecError for numbers of `blocks` patterns that are no such."""
    _check_numbers(_unpacked(packed, blocks, kept, block), math.comb(block, kept))


def _check_numbers(numbers: torch.Tensor, patterns: int) -> None:
    if numbers.numel() and int(numbers.max()) >= patterns:
        raise CodecError("the stored patterns are damaged; copy the file again")


def _unpacked(packed: torch.Tensor, blocks: int, kept: int, block: int) -> torch.Tensor:
    return unpack(packed, _bits(kept, block), blocks, torch.int32)


def _bits(kept: int, block: int) -> int:
    return (math.comb(block, kept) - 1).bit_length()


@cache
def _numbers(kept: int, block: int, device: torch.device) -> torch.Tensor:
    """The number of every mask, `[2^M]`."""
    return sent(torch.cumsum(_bits_of_masks(block).sum(1) == kept, 0) - 1, device)


@cache
def _places(kept: int, block: int, device: torch.device) -> torch.Tensor:
    """The places of every number, `[C(M, N), N]`."""
    bits = _bits_of_masks(block)
    return sent(bits[bits.sum(1) == kept].nonzero()[:, 1].view(-1, kept), device)


def _bits_of_masks(block: int) -> torch.Tensor:
    """`[2^M, M]`."""
    return (torch.arange(1 << block)[:, None] >> torch.arange(block)) & 1

"""Random numbers as a function of a seed and a counter, in integer arithmetic only.

The same on every device, in every chunking, for ever: a random mask that was drawn from a seed can
be drawn again, so it needs no bytes in the file. `torch.rand` promises none of this.
"""

from __future__ import annotations

import hashlib

import torch

ROUNDS = 6
CHUNK = 1 << 18
_MASK32 = 0xFFFFFFFF


def expert_seed(seed: int, layer: int, projection: str, expert: int) -> int:
    """The 62-bit seed of one expert's weight, from the recipe's seed."""
    digest = hashlib.sha256(f"ders/1/{seed}/{layer}/{projection}/{expert}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def _mix32(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit finalizer (lowbias32, C. Wellons 2018) on int64 tensors that hold 32-bit values."""
    value = value ^ (value >> 16)
    value = (value * 0x7FEB352D) & _MASK32
    value = value ^ (value >> 15)
    value = (value * 0x846CA68B) & _MASK32
    return value ^ (value >> 16)


def _round_keys(seed: int) -> list[int]:
    digest = hashlib.sha256(f"feistel/{seed}".encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(ROUNDS)]


def random_uniform(count: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """`count` numbers in (0, 1), odd multiples of 2⁻²⁴; float32 `[count]`."""
    first, second, *_ = _round_keys(seed)
    numbers = torch.empty(count, dtype=torch.float32, device=device)
    for begin in range(0, count, CHUNK):
        end = min(begin + CHUNK, count)
        counter = torch.arange(begin, end, dtype=torch.int64, device=device)
        mixed = _mix32(_mix32((counter & _MASK32) ^ first) ^ second ^ (counter >> 32))
        numbers[begin:end] = ((mixed >> 9).float() + 0.5) / (1 << 23)
    return numbers


def _permute(value: torch.Tensor, bits: int, keys: list[int]) -> torch.Tensor:
    """An unbalanced Feistel network: a bijection of [0, 2**bits), keyed."""
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    left, right = value >> low, value & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            right = right ^ (_mix32(left ^ key) & low_mask)
        else:
            left = left ^ (_mix32(right ^ key) & high_mask)
    return (left << low) | right


def random_positions(
    size: int, count: int, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`count` distinct positions in [0, size), subsets equally likely over seeds (from size 20 up;
    a Feistel network reaches only some permutations of a handful of values).

    The first `count` values of a keyed permutation of [0, size) (Feistel network with cycle
    walking; Black and Rogaway 2002). Returns int64 `[count]`, in the permutation's order.
    """
    bits = max((size - 1).bit_length(), 2)
    keys = _round_keys(seed)
    positions = torch.empty(count, dtype=torch.int64, device=device)
    for begin in range(0, count, CHUNK):
        chunk = torch.arange(begin, min(begin + CHUNK, count), dtype=torch.int64, device=device)
        chunk = _permute(chunk, bits, keys)
        while (outside := torch.nonzero(chunk >= size).flatten()).numel():
            chunk[outside] = _permute(chunk[outside], bits, keys)
        positions[begin : begin + chunk.numel()] = chunk
    return positions

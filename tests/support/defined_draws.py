"""Entries that `sparse` draws, from docs/format.md alone, in integers without a bound."""

from __future__ import annotations

import hashlib


def mix(value: int) -> int:
    value ^= value >> 16
    value = value * 0x7FEB352D % 2**32
    value ^= value >> 15
    value = value * 0x846CA68B % 2**32
    return value ^ value >> 16


def defined(size: int, count: int, seed: int, block_values: int = 2**16) -> list[int]:
    """The places of `count` of `size` entries, in the order of their values."""
    digest = hashlib.sha256(f"feistel/{seed}".encode()).digest()
    words = [int.from_bytes(digest[4 * turn : 4 * turn + 4], "little") for turn in range(6)]
    offset = int.from_bytes(digest[24:], "little") % size
    blocks = max(size // block_values, 1)
    found = []
    for block in range(blocks):
        begin = block * block_values
        end = size if block == blocks - 1 else begin + block_values
        drawn = (end * count + offset) // size - (begin * count + offset) // size
        bits = max((end - begin - 1).bit_length(), 2)
        low = bits // 2
        keys = [word ^ mix(block * (turn + 1) % 2**32) for turn, word in enumerate(words)]
        for rank in range(drawn):
            place = rank
            while True:
                left, right = place >> low, place % 2**low
                for turn, key in enumerate(keys):
                    if turn % 2:
                        right ^= mix(left ^ key) % 2**low
                    else:
                        left ^= mix(right ^ key) % 2 ** (bits - low)
                place = left * 2**low + right
                if place < end - begin:
                    break
            found.append(begin + place)
    return found

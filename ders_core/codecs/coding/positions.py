"""Sorted positions in the shortest of several exact forms.

*Fixed* forms have a length that follows from `size` and `count` alone: a bitmap, or Elias-Fano
(Fano 1971, Elias 1974), which keeps the low bits of each position as they are and the high bits in
unary, about 2 + log2(size / count) bits a position.

*Shortest* takes a bitmap, or the gaps between positions in Rice code (`rice.py`). With the best k
it is never longer than Elias-Fano. Of positions drawn at random it takes at most 4.2 % more than
their entropy (where 38 % are kept), and 0 to 1.4 % where a half, a tenth or a fiftieth is. Its
first byte is the form: 0 a bitmap, 1 + k Rice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ders_core.codecs.coding import rice
from ders_core.codecs.coding.bitmaps import bitmap_of, positions_in
from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.errors import CodecError
from ders_core.later import torch

BITMAP = 0
MOST_LOW_BITS = 62


def _low_bits(size: int, count: int) -> int:
    return max((size // count).bit_length() - 1, 0) if count else 0


def _high_length(size: int, count: int, low: int) -> int:
    """Bits of Elias-Fano's unary half: one for each position, one for each step of the high part.
    No Rice code of the same positions has more."""
    return count + (max(size - 1, 0) >> low) + 1


def _elias_fano_bytes(size: int, count: int) -> int:
    low = _low_bits(size, count)
    return packed_bytes(count, low) + packed_bytes(_high_length(size, count, low), 1)


def fixed_bytes(size: int, count: int) -> int:
    """Bytes that `count` positions in [0, size) take in the smaller fixed form."""
    return min(packed_bytes(size, 1), _elias_fano_bytes(size, count)) if count else 0


def shortest_bytes(size: int, count: int) -> int:
    """The most bytes that `count` positions in [0, size) take in the shortest form."""
    return 1 + fixed_bytes(size, count) if count else 0


def encode_fixed(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: int64 `[count]`, ascending and distinct, in [0, size). Returns uint8 bytes."""
    count = positions.numel()
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=positions.device)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        return bitmap_of(positions, size)
    low = _low_bits(size, count)
    ranks = torch.arange(count, dtype=torch.int64, device=positions.device)
    unary = bitmap_of((positions >> low) + ranks, _high_length(size, count, low))
    return torch.cat([pack(positions & ((1 << low) - 1), low), unary])


def decode_fixed(packed: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The inverse of `encode_fixed`. Raises CodecError if `packed` is damaged."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        return _checked(positions_in(packed, size, count + 1), size, count)
    low = _low_bits(size, count)
    split = packed_bytes(count, low)
    high = positions_in(packed[split:], _high_length(size, count, low), count)
    _check_count(high, count)
    high = high - torch.arange(count, device=packed.device)
    return _checked((high << low) | unpack(packed[:split], low, count, torch.int64), size, count)


def encode_shortest(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: int64 `[count]`, ascending and distinct, in [0, size). Returns uint8 bytes."""
    count = positions.numel()
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=positions.device)
    guess = _low_bits(size, count)
    forms = [
        (packed_bytes(count, low) + packed_bytes(rice.unary_length(positions, low), 1), 1 + low)
        for low in range(max(guess - 1, 0), guess + 2)
    ]
    _, form = min([(packed_bytes(size, 1), BITMAP), *forms])
    tag = torch.tensor([form], dtype=torch.uint8, device=positions.device)
    is_bitmap = form == BITMAP
    coded = bitmap_of(positions, size) if is_bitmap else rice.encode(positions, form - 1)
    return torch.cat([tag, coded])


def decode_shortest(packed: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The inverse of `encode_shortest`. Raises CodecError if `packed` is damaged."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    form = int(packed[0]) if packed.numel() else BITMAP
    body = packed[1:]
    if form == BITMAP:
        _check_length(body, packed_bytes(size, 1))
        return _checked(positions_in(body, size, count + 1), size, count)
    low = form - 1
    if low > MOST_LOW_BITS or body.numel() <= packed_bytes(count, low):
        raise _damaged()
    positions = rice.decode(body, low, count)
    if positions is None:
        raise _damaged()
    return _checked(positions, size, count)


@dataclass(frozen=True)
class PositionForm:
    """most_bytes: of (size, count). encode: of (positions, size). decode: of (bytes, size, count).
    is_exact: whether the bytes are always as many as `most_bytes` says."""

    most_bytes: Callable[[int, int], int]
    encode: Callable[[torch.Tensor, int], torch.Tensor]
    decode: Callable[[torch.Tensor, int, int], torch.Tensor]
    is_exact: bool


POSITION_FORMS = {
    "shortest": PositionForm(shortest_bytes, encode_shortest, decode_shortest, is_exact=False),
    "fixed": PositionForm(fixed_bytes, encode_fixed, decode_fixed, is_exact=True),
}
"""By their names in recipes."""


def _checked(positions: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """Positions from a file, if there are `count`, ascending, in [0, size)."""
    _check_count(positions, count)
    rising = bool((positions[1:] > positions[:-1]).all())
    if not rising or int(positions[0]) < 0 or int(positions[-1]) >= size:
        raise _damaged()
    return positions


def _check_count(positions: torch.Tensor, count: int) -> None:
    if positions.numel() != count:
        raise _damaged()


def _check_length(packed: torch.Tensor, length: int) -> None:
    if packed.numel() != length:
        raise _damaged()


def _damaged() -> CodecError:
    return CodecError("the stored positions are damaged; copy the file again")

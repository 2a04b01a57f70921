"""Sorted positions in the shortest of several exact forms.

*Fixed* forms have a length that follows from `size` and `count` alone: a bitmap, or Elias-Fano
(Fano 1971, Elias 1974), which keeps the low bits of each position as they are and the high bits in
unary, about 2 + log2(size / count) bits a position.

*Shortest* takes a bitmap, or the gaps between positions in Rice code (Rice 1979): the low k bits of
each gap as they are, the rest in unary. With the best k it is never longer than Elias-Fano, and
within 4 % of the entropy of positions drawn at random. Its first byte is the form: 0 a bitmap,
1 + k Rice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ders_core.codecs.coding.packing import pack, packed_bytes, unpack
from ders_core.compute.pieces import at_least, chunk_values
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
        return pack(_bitmap(positions, size), 1)
    low = _low_bits(size, count)
    ranks = torch.arange(count, dtype=torch.int64, device=positions.device)
    unary = _bitmap((positions >> low) + ranks, _high_length(size, count, low))
    return torch.cat([pack(positions & ((1 << low) - 1), low), pack(unary, 1)])


def decode_fixed(packed: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The inverse of `encode_fixed`. Raises CodecError if `packed` is damaged."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    if packed_bytes(size, 1) <= _elias_fano_bytes(size, count):
        positions = at_least(unpack(packed, 1, size, torch.uint8), 1)
        return _checked(positions, size, count)
    low = _low_bits(size, count)
    split = packed_bytes(count, low)
    unary = unpack(packed[split:], 1, _high_length(size, count, low), torch.uint8)
    high = at_least(unary, 1)[:count]
    _check_count(high, count)
    high = high - torch.arange(count, device=packed.device)
    return _checked((high << low) | unpack(packed[:split], low, count, torch.int64), size, count)


def encode_shortest(positions: torch.Tensor, size: int) -> torch.Tensor:
    """positions: int64 `[count]`, ascending and distinct, in [0, size). Returns uint8 bytes."""
    count = positions.numel()
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=positions.device)
    gaps = _gaps(positions)
    guess = _low_bits(size, count)
    forms = [
        (packed_bytes(count, low) + packed_bytes(count + _steps(gaps, low), 1), 1 + low)
        for low in range(max(guess - 1, 0), guess + 2)
    ]
    _, form = min([(packed_bytes(size, 1), BITMAP), *forms])
    tag = torch.tensor([form], dtype=torch.uint8, device=positions.device)
    if form == BITMAP:
        return torch.cat([tag, pack(_bitmap(positions, size), 1)])
    low = form - 1
    ends = (gaps >> low).add_(1).cumsum_(0).sub_(1)  # of each unary number, a one after zeros
    unary = _bitmap(ends, int(ends[-1]) + 1)
    return torch.cat([tag, pack(gaps & ((1 << low) - 1), low), pack(unary, 1)])


def decode_shortest(packed: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """The inverse of `encode_shortest`. Raises CodecError if `packed` is damaged."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=packed.device)
    form = int(packed[0]) if packed.numel() else BITMAP
    body = packed[1:]
    if form == BITMAP:
        _check_length(body, packed_bytes(size, 1))
        return _checked(at_least(unpack(body, 1, size, torch.uint8), 1), size, count)
    low = form - 1
    split = packed_bytes(count, low)
    if low > MOST_LOW_BITS or body.numel() <= split:
        raise _damaged()
    unary = unpack(body[split:], 1, 8 * (body.numel() - split), torch.uint8)
    ends = at_least(unary, 1)
    _check_count(ends, count)
    gaps = _gaps(ends).bitwise_left_shift_(low)
    gaps |= unpack(body[:split], low, count, torch.int64)
    return _checked(gaps.add_(1).cumsum_(0).sub_(1), size, count)


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


def _gaps(positions: torch.Tensor) -> torch.Tensor:
    """How many numbers are between neighbours, and before the first: int64 `[count]`."""
    gaps = positions - 1
    gaps[1:] -= positions[:-1]
    gaps[:1] += 1
    return gaps


def _steps(gaps: torch.Tensor, low: int) -> int:
    """Σ gap >> low."""
    return sum(int((piece >> low).sum()) for piece in gaps.split(chunk_values(gaps.device)))


def _bitmap(positions: torch.Tensor, size: int) -> torch.Tensor:
    bitmap = torch.zeros(size, dtype=torch.uint8, device=positions.device)
    bitmap[positions] = 1
    return bitmap


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

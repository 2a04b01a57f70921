"""Random numbers as a function of a seed and a counter, in integer arithmetic only.

The same on every device, in every chunking, for ever: a random mask that was drawn from a seed can
be drawn again, so it needs no bytes in the file. `torch.rand` does not promise this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.compute.pieces import at_least, chunk_values, pieces
from ders_core.later import np, torch

ROUNDS = 6
CHUNK = 1 << 18
_MASK32 = 0xFFFFFFFF


def expert_seed(seed: int, layer: int, projection: str, expert: int) -> int:
    """The 62-bit seed of one expert's weight, from the recipe's seed."""
    return _seed(f"ders/1/{seed}/{layer}/{projection}/{expert}")


def base_seed(seed: int, layer: int, projection: str, base: int) -> int:
    """As `expert_seed`, of a base that is coded itself."""
    return _seed(f"ders/1/{seed}/{layer}/{projection}/base/{base}")


def tensor_seed(seed: int, name: str, piece: int) -> int:
    """As `expert_seed`, of a piece of a tensor outside the experts."""
    return _seed(f"ders/1/{seed}/tensor/{piece}/{name}")


def _seed(text: str) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def mix32(value: torch.Tensor) -> torch.Tensor:
    """A 32-bit finalizer (lowbias32, C. Wellons 2018) on int64 tensors that hold 32-bit values."""
    value = value ^ (value >> 16)
    value = (value * 0x7FEB352D) & _MASK32
    value = value ^ (value >> 15)
    value = (value * 0x846CA68B) & _MASK32
    return value ^ (value >> 16)


def round_keys(seed: int) -> list[int]:
    """32 bits for each round of the Feistel network."""
    digest = hashlib.sha256(f"feistel/{seed}".encode()).digest()
    return [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(ROUNDS)]


def random_uniform(
    count: int, seed: int, device: torch.device | str = "cpu", *, begin: int = 0
) -> torch.Tensor:
    """`count` numbers in (0, 1), odd multiples of 2⁻²⁴; float32 `[count]`.

    begin: how many of the seed's numbers to leave out first.
    """
    numbers = fresh((count,), torch.float32, device)
    if kernels.takes(numbers):
        from ders_core.compute.kernels import draws

        draws.fill(numbers.numpy(), begin, *draw_keys(seed))
        return numbers
    for piece in pieces(count, CHUNK):
        counters = torch.arange(
            begin + piece.start, begin + piece.stop, dtype=torch.int64, device=device
        )
        numbers[piece] = uniform_of(counters, seed)
    return numbers


def uniform_of(counters: torch.Tensor, seed: int) -> torch.Tensor:
    """The numbers of `random_uniform` at these counters, int64 `[n]`: float32 `[n]`."""
    first, second, *_ = round_keys(seed)
    mixed = mix32(mix32((counters & _MASK32) ^ first) ^ second ^ (counters >> 32))
    return ((mixed >> 9).float() + 0.5) / (1 << 23)


def draw_keys(seed: int) -> tuple[np.uint32, np.uint32]:
    """What `compute.kernels.draws` wants of a seed."""
    first, second, *_ = round_keys(seed)
    return np.uint32(first), np.uint32(second)


def _round_tables(bits: int, seed: int, device: torch.device) -> list[torch.Tensor]:
    """What each round adds to one half, for every value of the other one: int32 `[2^half]` (int64
    where positions need it). A half has few values, so looking up is quicker than mixing."""
    low = bits // 2
    masks = (1 << low) - 1, (1 << (bits - low)) - 1
    dtype = torch.int32 if bits < 32 else torch.int64
    keys = torch.tensor(round_keys(seed), dtype=torch.int64, device=device).view(-1, 2, 1)
    even, odd = (  # the rounds that change one half, together
        mix32(torch.arange(masks[side] + 1, dtype=torch.int64, device=device) ^ keys[:, side])
        .bitwise_and_(masks[1 - side])
        .to(dtype)
        for side in (0, 1)
    )
    return [table for pair in zip(even, odd, strict=True) for table in pair]


def _permute(value: torch.Tensor, bits: int, tables: list[torch.Tensor]) -> torch.Tensor:
    """An unbalanced Feistel network: a bijection of [0, 2**bits)."""
    low = bits // 2
    left, right = value >> low, value & ((1 << low) - 1)
    for number, table in enumerate(tables):
        if number % 2:
            right ^= table.index_select(0, left)
        else:
            left ^= table.index_select(0, right)
    return left.bitwise_left_shift_(low).bitwise_or_(right)


def position_keys(size: int, seed: int) -> tuple[int, np.ndarray]:
    """(bits, keys) that `compute.kernels.positions` wants, of a size of fewer than 32 bits."""
    return bits_of(size), np.array(round_keys(seed), dtype=np.uint32)


def bits_of(size: int) -> int:
    """How many bits the numbers have that are permuted for positions in [0, size)."""
    return max((size - 1).bit_length(), 2)


def position_chunks(
    size: int, count: int, seed: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    """What `random_positions` gives, a piece at a time."""
    bits = bits_of(size)
    where = torch.device(device)
    if bits < 32 and kernels.can_run(where):
        from ders_core.compute.kernels import positions as loops

        _, keys = position_keys(size, seed)
        for piece in pieces(count, CHUNK):
            chosen = torch.empty(piece.stop - piece.start, dtype=torch.int64)
            loops.draw(chosen.numpy(), piece.start, size, bits, keys)
            yield chosen
        return
    tables = _round_tables(bits, seed, where)
    for piece in pieces(count, chunk_values(where, CHUNK)):
        chunk = torch.arange(piece.start, piece.stop, dtype=tables[0].dtype, device=where)
        chunk = _permute(chunk, bits, tables)
        outside = at_least(chunk, size)
        moved = chunk.index_select(0, outside)
        while outside.numel():
            moved = _permute(moved, bits, tables)
            chunk.index_copy_(0, outside, moved)
            still = at_least(moved, size)
            outside, moved = outside.index_select(0, still), moved.index_select(0, still)
        yield chunk.long()


def random_positions(
    size: int, count: int, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """`count` distinct positions in [0, size), subsets equally likely over seeds (from size 20 up;
    a Feistel network cannot reach every permutation of a handful of values).

    The first `count` values of a keyed permutation of [0, size) (Feistel network with cycle
    walking; Black and Rogaway 2002). Returns int64 `[count]`, in the permutation's order.
    """
    positions = fresh((count,), torch.int64, device)
    begin = 0
    for chunk in position_chunks(size, count, seed, device):
        positions[begin : begin + chunk.numel()] = chunk
        begin += chunk.numel()
    return positions

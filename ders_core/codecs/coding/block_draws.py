"""Entries of a matrix drawn from a seed, a fixed share in each block of it.

Drawn over a whole matrix (`coding.prng`), neighbours in the order of drawing lie anywhere, and each
waits for memory; a block lies in the processor's cache. A matrix of n entries has blocks of 2^16,
the last one with the rest, or one block if it has less than two. In it, k of n entries are drawn so
that each has the chance k / n exactly: with an offset r in [0, n) from the seed, the blocks before
the entry e hold ⌊(e·k + r) / n⌋ of them (systematic sampling: Madow 1949). Within block b they are
the first images of a keyed permutation, the one of `random_positions` whose key of round i is xored
with mix(b·(i + 1)). So a matrix of one block has the positions of `random_positions`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ders_core.codecs.coding.prng import CHUNK, bits_of, mix32, position_keys, round_keys
from ders_core.compute import kernels
from ders_core.compute.pieces import at_least, chunk_values, pieces
from ders_core.compute.sent import sent
from ders_core.later import np, torch

BLOCK_VALUES = 1 << 16
"""Of a weight, its base and the sum, 16 bits each, they take 400 KB: as much as a core's cache."""


@dataclass(frozen=True)
class BlockDraw:
    """`count` of `size` entries."""

    size: int
    count: int
    seed: int

    @property
    def blocks(self) -> int:
        return max(self.size // BLOCK_VALUES, 1)

    @cached_property
    def offset(self) -> int:
        digest = hashlib.sha256(f"feistel/{self.seed}".encode()).digest()
        return int.from_bytes(digest[24:], "little") % max(self.size, 1)

    def first_entry(self, block: int) -> int:
        """Where a block begins; the last one reaches to the end."""
        return self.size if block == self.blocks else block * BLOCK_VALUES

    def drawn_before(self, block: int) -> int:
        """How many entries are drawn in the blocks before."""
        return (self.first_entry(block) * self.count + self.offset) // max(self.size, 1)

    def has_loops(self, device: torch.device) -> bool:
        """Whether compiled loops can draw them: they do not divide by 0, and of larger sizes their
        products overflow."""
        return 0 < self.size < 1 << 31 and kernels.can_run(device)

    def for_loops(self) -> tuple[np.ndarray, np.ndarray]:
        """(plan, keys) that `compute.kernels.block_draws` wants."""
        plan = BLOCK_VALUES, self.size, self.count, self.offset
        return np.array(plan, np.int64), position_keys(self.size, self.seed)[1]

    def blocks_of(self, begin: int, end: int) -> slice:
        """Those in which the entries from `begin` to before `end` lie."""
        last = self.blocks - 1
        first = min(begin // BLOCK_VALUES, last)
        return slice(first, max(first, min((end - 1) // BLOCK_VALUES, last) + 1))

    def chunks(self, device: torch.device, blocks: slice | None = None) -> Iterator[torch.Tensor]:
        """The flat places, int64 `[n]`, of some blocks at a time; in a block, in the order of the
        permutation. blocks: of all if it is None."""
        if not self.count:
            return
        first, end = (0, self.blocks) if blocks is None else (blocks.start, blocks.stop)
        entries = chunk_values(device, CHUNK) * self.size // self.count
        for some in pieces(end - first, max(entries // BLOCK_VALUES, 1)):
            part = slice(first + some.start, first + some.stop)
            if self.has_loops(device):
                yield self._by_loops(part)
                continue
            whole = slice(part.start, min(part.stop, self.blocks - 1))
            drawn = [self._permuted(whole, device)]
            if part.stop == self.blocks:
                drawn.append(sent(self._last(), device))
            yield torch.cat(drawn)

    def _last(self) -> torch.Tensor:
        """The places in the last block, on the CPU: elsewhere the walk through a permutation that
        reaches beyond the block would ask how far it got."""
        last, here = slice(self.blocks - 1, self.blocks), torch.device("cpu")
        return self._by_loops(last) if self.has_loops(here) else self._permuted(last, here)

    def _by_loops(self, part: slice) -> torch.Tensor:
        from ders_core.compute.kernels import block_draws

        count = self.drawn_before(part.stop) - self.drawn_before(part.start)
        places = torch.empty(count, dtype=torch.int64)
        block_draws.draw(*self.for_loops(), part.start, part.stop, places.numpy())
        return places

    def _permuted(self, part: slice, device: torch.device) -> torch.Tensor:
        """The places in some blocks of one size."""
        blocks = range(part.start, part.stop)
        if not blocks:
            return torch.empty(0, dtype=torch.int64, device=device)
        size = self.first_entry(part.start + 1) - self.first_entry(part.start)
        drawn = [self.drawn_before(block + 1) - self.drawn_before(block) for block in blocks]
        counts = sent(torch.tensor(drawn), device)
        each = torch.arange(len(drawn), device=device)
        block: torch.Tensor = torch.repeat_interleave(each, counts, output_size=sum(drawn))
        rank = torch.arange(len(block), device=device) - (counts.cumsum(0) - counts)[block]
        numbers: torch.Tensor = each + part.start
        keys = [
            key ^ mix32(numbers * (turn + 1) & 0xFFFFFFFF)
            for turn, key in enumerate(round_keys(self.seed))
        ]
        bits = bits_of(size)
        places = _permute(rank, bits, [key[block] for key in keys])
        while size < 1 << bits and (outside := at_least(places, size)).numel():
            moved = _permute(places[outside], bits, [key[block[outside]] for key in keys])
            places[outside] = moved
        return places + numbers[block] * BLOCK_VALUES


def most_apart(shape: tuple[int, int], count: int) -> int:
    """The most drawn entries from the first to the last one of a row of a matrix `[out, in]`, in
    the order of drawing, whatever the seed is."""
    (out, width), size = shape, math.prod(shape)
    last = max(size // BLOCK_VALUES, 1) - 1
    begins = np.arange(out, dtype=np.int64) * width
    first_block, last_block = (
        np.minimum(places // BLOCK_VALUES, last) for places in (begins, begins + width - 1)
    )
    ends = np.where(last_block == last, size, (last_block + 1) * BLOCK_VALUES)
    before = first_block * BLOCK_VALUES * count // size
    return int((ends * count // size + 1 - before).max())


def _permute(values: torch.Tensor, bits: int, keys: list[torch.Tensor]) -> torch.Tensor:
    """The images of numbers below 2^bits, each under the keys at its place."""
    low = bits // 2
    left, right = values >> low, values & ((1 << low) - 1)
    for turn, key in enumerate(keys):
        if turn % 2:
            right = right ^ (mix32(left ^ key) & ((1 << low) - 1))
        else:
            left = left ^ (mix32(right ^ key) & ((1 << (bits - low)) - 1))
    return left << low | right

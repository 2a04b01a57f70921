"""Groups whose weights are held from when a base is made of them until deltas are.

To read them twice takes a disk, a network, or the decoding of a quantized source twice as long. A
small group is read a few rows at a time, as its base is made. A large one is read before that,
matrix after matrix and past the system's page cache, into memory that the group before it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ders_core.checkpoint.groups import ExpertGroup
from ders_core.checkpoint.matrix import Matrix
from ders_core.checkpoint.room import ROOM, Turn
from ders_core.compute.buffers import return_small_blocks, reused
from ders_core.files.cold_reads import reading_again, reading_once
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import FileTensor, TensorReader
from ders_core.later import np, torch

HELD_BYTES = 1 << 28
"""Of a small group, at most. While its last experts are encoded, the next one is held already."""


@dataclass(frozen=True)
class Holding:
    """Of a large group. count: how many of its first experts are held. ahead: bytes that held
    experts, of the group before too, take at most when one more is read before its group's turn,
    while all threads work on the group before; `Turn.beyond` adds to it as they end. beside: bytes
    that are needed beside an expert while it is encoded. most: bytes that held experts, and what is
    needed beside those that are encoded, take at most all together. helping: bytes that threads
    without an expert hold at most while they help with one, if `most` does not leave these out."""

    count: int
    ahead: int
    beside: int
    most: int
    helping: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class HeldMatrix(Matrix):
    """A matrix whose rows stay in memory once they are read, until it is read whole; rows can be
    read by several threads.

    whole: where it is read from. memory: `[out, in]` in the dtype in which it is read; none once it
    was given away, or if it is not held: rows are read through the page cache then, as the matrix
    is read again. is_read: bool `[out]`, which rows are there.
    """

    whole: Matrix
    memory: list[torch.Tensor]
    is_read: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.whole.shape

    @property
    def dtype(self) -> Dtype:
        return self.whole.dtype

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes

    @property
    def is_quantized(self) -> bool:
        return self.whole.is_quantized

    def read(self, rows: slice | None = None) -> torch.Tensor:
        if not self.memory:
            return self.whole.read(rows)
        return self._rows(self.memory[0], rows or slice(None)).clone()

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        if self.memory:
            out.copy_(self._rows(self.memory[0], rows))
            return
        with reading_again():
            self.whole.read_into(out, rows)

    def read_whole(self, lend: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Gives its memory away: it is free when the caller is done with the matrix."""
        if not self.memory:
            return self.whole.read_whole(lend)
        return self._rows(self.memory.pop(), slice(None))

    def _rows(self, memory: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rows as a view of the memory."""
        first, last, _ = rows.indices(self.shape[0])
        missing = first + np.flatnonzero(~self.is_read[first:last])
        for run in np.split(missing, 1 + np.flatnonzero(np.diff(missing) > 1)):
            if run.size:
                part = slice(int(run[0]), int(run[-1]) + 1)
                self.whole.read_into(memory[part], part)
                self.is_read[part] = True
        return memory[first : max(first, last)]

    def turned(self) -> Matrix:
        """The transpose, which is read from the file."""
        return self.whole.turned()

    @property
    def lies_across(self) -> bool:
        return self.whole.lies_across

    def middle(self, lines: int, values: int) -> np.ndarray:
        return self.whole.middle(lines, values)

    def within(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        return self.whole.within(tensors)


def held(group: ExpertGroup) -> ExpertGroup:
    """A small group, each of whose experts is held from when it is first read until it is read
    whole. The group itself if it is large, or its experts are stored transposed: averages of these
    are taken over columns."""
    experts, *shape = group.shape
    if not is_small(group) or group.experts[0].lies_across:
        return group
    with torch.inference_mode(False):  # threads that read are not in that mode
        memory = [reused(shape, group.dtype.torch) for _ in range(experts)]
    matrices = (
        HeldMatrix(matrix.info, matrix.slot, matrix, [values], np.zeros(shape[0], bool))
        for matrix, values in zip(group.experts, memory, strict=True)
    )
    return replace(group, experts=tuple(matrices))


def is_small(group: ExpertGroup) -> bool:
    """Whether the numbers of its experts take at most `HELD_BYTES`."""
    return math.prod(group.shape) * group.dtype.itemsize <= HELD_BYTES


def is_plain(group: ExpertGroup) -> bool:
    """Whether each expert lies in a local file as it is read, row after row, so that to read it
    takes no memory beside its own. What comes from an address is joined of pieces first."""
    return all(
        type(matrix) is Matrix
        and isinstance(matrix.info, FileTensor)
        and not matrix.info.is_remote
        and matrix.slot.is_contiguous
        for matrix in group.experts
    )


def first_held(group: ExpertGroup, holding: Holding, turn: Turn) -> ExpertGroup:
    """The group with its first experts in memory, each until it is read whole, and the others read
    through the page cache until then. turn: of the group. Raises CheckpointError, NotWanted."""
    shape, dtype, held_experts = group.shape[1:], group.dtype.torch, []
    return_small_blocks()
    with reading_once(), torch.inference_mode(False):
        for matrix in group.experts[: holding.count]:
            memory = ROOM.lend(shape, dtype, holding.ahead, turn)
            matrix.read_into(memory, slice(0, shape[0]))
            is_read = np.ones(shape[0], bool)
            held_experts.append(HeldMatrix(matrix.info, matrix.slot, matrix, [memory], is_read))
    nothing = np.zeros(shape[0], bool)
    others = (
        HeldMatrix(matrix.info, matrix.slot, matrix, [], nothing)
        for matrix in group.experts[holding.count :]
    )
    return replace(group, experts=(*held_experts, *others))

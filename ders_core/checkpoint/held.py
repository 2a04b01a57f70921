"""Groups whose weights are read from their files once, and held for what reads them again.

A base and the deltas against it are made of the same weights. To read them twice takes a disk, a
network, or the decoding of a quantized source twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ders_core.checkpoint.groups import ExpertGroup
from ders_core.checkpoint.matrix import Matrix
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import TensorReader
from ders_core.later import np, torch

HELD_BYTES = 1 << 28
"""Of a group, at most. While its last experts are encoded the next one is held too."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldMatrix(Matrix):
    """A matrix whose rows stay in memory once they are read; for several threads.

    whole: where it is read from. memory: `[out, in]` in the dtype in which it is read. is_read:
    bool `[out]`, which rows are there.
    """

    whole: Matrix
    memory: torch.Tensor
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

    def read(self, rows: slice | None = None) -> torch.Tensor:
        return self._held(rows or slice(None)).clone()

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        out.copy_(self._held(rows))

    def read_whole(self, memory: torch.Tensor) -> torch.Tensor:
        return self._held(slice(None))

    def _held(self, rows: slice) -> torch.Tensor:
        """Rows as a view of the memory."""
        first, last, _ = rows.indices(self.shape[0])
        missing = first + np.flatnonzero(~self.is_read[first:last])
        for run in np.split(missing, 1 + np.flatnonzero(np.diff(missing) > 1)):
            if run.size:
                part = slice(int(run[0]), int(run[-1]) + 1)
                self.whole.read_into(self.memory[part], part)
                self.is_read[part] = True
        return self.memory[first : max(first, last)]

    def turned(self) -> Matrix:
        raise NotImplementedError("a matrix that is held is read by rows")

    @property
    def lies_across(self) -> bool:
        return self.whole.lies_across

    def middle(self, lines: int, values: int) -> np.ndarray:
        return self.whole.middle(lines, values)

    def within(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        return self.whole.within(tensors)


def held(group: ExpertGroup) -> ExpertGroup:
    """The group, whose experts' weights are held from when they are first read until nobody has
    this object. The group itself if they take more than `HELD_BYTES`, or are stored transposed:
    averages of these are taken over columns."""
    nbytes = group.dtype.itemsize * math.prod(group.shape)
    if nbytes > HELD_BYTES or group.experts[0].lies_across:
        return group
    with torch.inference_mode(False):  # threads that read are not in that mode
        memory = fresh(group.shape, group.dtype.torch)
    out = group.shape[1]
    experts = (
        HeldMatrix(matrix.info, matrix.slot, matrix, values, np.zeros(out, bool))
        for matrix, values in zip(group.experts, memory.unbind(), strict=True)
    )
    return replace(group, experts=tuple(experts))

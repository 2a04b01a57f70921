"""One expert's matrix `[out, in]`, alone or anywhere inside a tensor of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ders_core.checkpoint.axes import EXPERT, IN, OUT, PART, Axes
from ders_core.checkpoint.quantized import QuantizedWeight
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import as_float32, rounded
from ders_core.files.tensor import TensorReader
from ders_core.later import np, torch


@dataclass(frozen=True)
class Slot:
    """The place of one expert's projection among a tensor's elements.

    sizes: of the axes of the tensor. expert, part: the index along these axes. turned: take the
    transpose.
    """

    axes: Axes
    sizes: Mapping[str, int]
    expert: int = 0
    part: int = 0
    turned: bool = False

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(out, in); a bias is `[out, 1]`."""
        out, width = self.sizes[OUT], self.sizes.get(IN, 1)
        return (width, out) if self.turned else (out, width)

    @cached_property
    def strides(self) -> tuple[int, int]:
        """Elements between neighbours along out and in."""
        strides = self.axes.strides(self.sizes)
        out, width = strides[OUT], strides.get(IN, 1)
        return (width, out) if self.turned else (out, width)

    @cached_property
    def offset(self) -> int:
        """Elements before the matrix's first one."""
        strides = self.axes.strides(self.sizes)
        return self.expert * strides.get(EXPERT, 0) + self.part * strides.get(PART, 0)

    @property
    def is_contiguous(self) -> bool:
        """Whether the matrix's elements follow one another, row after row."""
        out, width = self.shape
        return (out == 1 or self.strides[0] == width) and (width == 1 or self.strides[1] == 1)

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """The matrix `[out, in]` as a view of all the tensor's elements `[n]`."""
        return flat.as_strided(self.shape, self.strides, flat.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix `[out, in]` at a slot of a tensor, or a bias as `[out, 1]`."""

    info: TensorReader
    slot: Slot

    @property
    def shape(self) -> tuple[int, int]:
        return self.slot.shape

    @property
    def dtype(self) -> Dtype:
        return self.info.dtype

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.slot.shape) * self.info.dtype.itemsize

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """`[rows, in]` in the storage dtype. Raises CheckpointError if the file ends too early."""
        out, width = self.slot.shape
        first, last, _ = (rows or slice(None)).indices(out)
        count = max(last - first, 0)
        offset = self.slot.offset + first * self.slot.strides[0]
        if self.slot.is_contiguous:
            return self.info.elements(offset, count * width).view(count, width)
        return self.info.strided(offset, (count, width), self.slot.strides)

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        """Read rows into `[rows, in]`, contiguous and in the storage dtype."""
        if self.slot.is_contiguous:
            first = self.slot.offset + rows.start * self.slot.strides[0]
            self.info.read_into(out, first)
        else:
            out.copy_(self.read(rows))

    def read_whole(self, lend: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The matrix `[out, in]`, not to be changed: read into memory of its shape and dtype that
        is lent, or where it is held already."""
        memory = lend()
        self.read_into(memory, slice(0, self.shape[0]))
        return memory

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as codes and scales."""
        return False

    def turned(self) -> Matrix:
        """The transpose `[in, out]`."""
        return replace(self, slot=replace(self.slot, turned=not self.slot.turned))

    @property
    def lies_across(self) -> bool:
        """Whether it is stored transposed, so that each row is spread over the tensor."""
        return self.slot.strides[0] < self.slot.strides[1]

    def middle(self, lines: int, values: int) -> np.ndarray:
        """`[n]` float32: about `values` values from the middle that are close together on disk.

        They are at most `lines` rows, or columns of a matrix that is stored transposed.
        """
        shape, offset = self.middle_place(lines, values)
        words = self.info.words(offset, shape, self.slot.strides)
        return as_float32(words, self.info.dtype).reshape(-1)

    def middle_place(self, lines: int, values: int) -> tuple[tuple[int, int], int]:
        """The shape of what `middle` takes, and where it begins among the tensor's elements."""
        out, width = self.slot.shape
        across = self.lies_across
        length, most = (out, width) if across else (width, out)
        count = min(max(values // length, 1), lines, most)
        begin = (most - count) // 2
        shape = (out, count) if across else (count, width)
        return shape, self.slot.offset + begin * self.slot.strides[1 if across else 0]

    def within(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        """The same slot, in other tensors of the same names."""
        return replace(self, info=tensors[self.info.name])


@dataclass(frozen=True, slots=True)
class QuantizedMatrix(Matrix):
    """A matrix that is stored as codes and scales, and read as numbers.

    weight: the tensor's numbers `[..., out, in]`, to which `slot` refers. numbers: the dtype in
    which they are read.
    """

    weight: QuantizedWeight
    numbers: Dtype

    @property
    def dtype(self) -> Dtype:
        return self.numbers

    @property
    def nbytes(self) -> int:
        return self.info.nbytes * math.prod(self.slot.shape) // math.prod(self.weight.shape)

    @property
    def is_quantized(self) -> bool:
        return True

    def read(self, rows: slice | None = None) -> torch.Tensor:
        out, width = self.slot.shape
        first, last, _ = (rows or slice(None)).indices(out)
        if last <= first:
            return torch.empty(0, width, dtype=self.numbers.torch)
        step, chosen = self._rows(first, last)
        return self.weight.read(self.slot.expert, chosen)[::step].to(self.numbers.torch)

    def _rows(self, first: int, last: int) -> tuple[int, slice]:
        """Rows of the tensor between two of the matrix, and from the matrix's row `first` to the
        one before `last`."""
        step = self.slot.strides[0] // self.shape[1]
        begin = self.slot.offset // self.shape[1] % self.weight.shape[-2] + first * step
        return step, slice(begin, begin + (last - first - 1) * step + 1)

    def middle(self, lines: int, values: int) -> np.ndarray:
        out, width = self.shape
        count = min(max(values // width, 1), lines, out)
        begin = (out - count) // 2
        step, chosen = self._rows(begin, begin + count)
        numbers = self.weight.numbers(self.slot.expert, chosen)[::step]
        return rounded(numbers, self.numbers).reshape(-1)

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        out.copy_(self.read(rows))

    @property
    def lies_across(self) -> bool:
        return False  # codes and scales are read by rows

    def within(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        codes, scales = tensors[self.weight.codes.name], tensors[self.weight.scales.name]
        weight = replace(self.weight, codes=codes, scales=scales)
        return replace(self, info=codes, weight=weight)


@dataclass(frozen=True, slots=True)
class MatrixRows(Matrix):
    """Some rows of a matrix, as a matrix. pieces: which rows of `whole`, in order."""

    whole: Matrix
    pieces: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(piece.stop - piece.start for piece in self.pieces), self.whole.shape[1]

    @property
    def dtype(self) -> Dtype:
        return self.whole.dtype

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes * self.shape[0] // max(self.whole.shape[0], 1)

    @property
    def is_quantized(self) -> bool:
        return self.whole.is_quantized

    def read(self, rows: slice | None = None) -> torch.Tensor:
        first, last, _ = (rows or slice(None)).indices(self.shape[0])
        parts, begin = [torch.empty(0, self.shape[1], dtype=self.dtype.torch)], 0
        for piece in self.pieces:
            count = piece.stop - piece.start
            low, high = max(first - begin, 0), min(last - begin, count)
            if low < high:
                parts.append(self.whole.read(slice(piece.start + low, piece.start + high)))
            begin += count
        return torch.cat(parts)

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        out.copy_(self.read(rows))

    def turned(self) -> Matrix:
        raise NotImplementedError("a choice of rows is read by rows")

    @property
    def lies_across(self) -> bool:
        return False

    def middle(self, lines: int, values: int) -> np.ndarray:
        out, width = self.shape
        count = min(max(values // max(width, 1), 1), lines, out)
        begin = (out - count) // 2
        return self.read(slice(begin, begin + count)).float().numpy().reshape(-1)

    def within(self, tensors: Mapping[str, TensorReader]) -> Matrix:
        return replace(self, whole=self.whole.within(tensors))

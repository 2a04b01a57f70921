"""Expert groups: the K experts' weights of one projection in one layer, as views."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from ders_core.checkpoint.matrix import Matrix, MatrixRows, QuantizedMatrix
from ders_core.files.dtype import Dtype
from ders_core.files.remote import concurrently
from ders_core.files.tensor import FileTensor
from ders_core.later import np, torch

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """One MoE block of a model.

    index: the layer's number in this program; stacks of layers are counted one after another.
    stack, layer: which stack, from 0, and the layer's number within it.
    run: where a block holds experts of unlike shapes, which run of alike ones, from 0.
    """

    name: str
    index: int
    stack: int
    layer: int
    router: str | None
    run: int = 0

    @property
    def prefix(self) -> str:
        """What the names of a packed group's tensors start with."""
        return f"{self.name}.ders" + (f".{self.run}" if self.run else "")


@dataclass(frozen=True)
class ExpertGroup:
    """The K experts' weights of one projection in one layer, as views: `[K, out, in]`.

    Orientation, fusion and quantization are undone: however they are stored, a group is `[K, out,
    in]`. biases: one `[out, 1]` per expert, or none. shared, shared_bias: the always-on expert's,
    if the block has one.
    """

    block: Block
    projection: str
    experts: tuple[Matrix, ...]
    biases: tuple[Matrix, ...] = ()
    shared: Matrix | None = None
    shared_bias: Matrix | None = None

    @property
    def layer(self) -> int:
        return self.block.index

    @property
    def key(self) -> tuple[int, str]:
        return self.layer, self.projection

    @property
    def prefix(self) -> str:
        """In a packed checkpoint the group's parts are the tensors `<prefix>.<part>`."""
        return f"{self.block.prefix}.{self.projection}"

    @property
    def router(self) -> str | None:
        return self.block.router

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, out, in)"""
        return len(self.experts), *self.experts[0].shape

    @property
    def dtype(self) -> Dtype:
        return self.experts[0].dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are stored as codes and scales."""
        return isinstance(self.experts[0], QuantizedMatrix)

    @cached_property
    def nbytes(self) -> int:
        """Bytes on disk, biases included."""
        return sum(matrix.nbytes for matrix in (*self.experts, *self.biases))

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors that hold the group, or a part of it."""
        return tuple(dict.fromkeys(matrix.info.name for matrix in (*self.experts, *self.biases)))

    def expert_name(self, expert: int) -> str:
        """One expert's weight, as an error message names it."""
        matrix = self.experts[expert]
        alone = matrix.nbytes == matrix.info.nbytes
        return matrix.info.name if alone else f"{matrix.info.name} (expert {expert})"

    def read(self, expert: int | None = None, rows: slice | None = None) -> torch.Tensor:
        """`[K, rows, in]`, or `[rows, in]` of one expert, in the storage dtype."""
        if expert is not None:
            return self.experts[expert].read(rows)
        return torch.stack(self._each(lambda matrix: matrix.read(rows)))

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        """Read rows of every expert into `[K, rows, in]`, contiguous and in the storage dtype."""
        places = list(zip(self.experts, out.unbind(), strict=True))
        if self.experts[0].info.is_remote:
            concurrently(lambda place: place[0].read_into(place[1], rows), places)
        else:
            for matrix, place in places:
                matrix.read_into(place, rows)

    def read_ahead(self) -> None:
        """Ask the system to read the experts from a local disk into its page cache, without
        waiting for it."""
        tensors = {info.name: info for matrix in self.experts for info in matrix.info.sources()}
        threading.Thread(target=_will_need, args=(list(tensors.values()),), daemon=True).start()

    def middle(self, lines: int, values: int) -> np.ndarray:
        """`[K, n]` float32: a few rows of each expert (see `Matrix.middle`)."""
        return np.stack(self._each(lambda matrix: matrix.middle(lines, values)))

    def _each(self, read: Callable[[Matrix], T]) -> list[T]:
        """What is read of each expert; of several at once where each read is a walk."""
        if self.experts[0].info.is_remote:
            return list(concurrently(read, self.experts))
        return [read(matrix) for matrix in self.experts]

    def read_biases(self) -> torch.Tensor:
        """`[K, out]` in the storage dtype."""
        return torch.stack([bias.read()[:, 0] for bias in self.biases])

    def as_it_lies(self) -> ExpertGroup:
        """The group, or its transpose `[K, in, out]` if the experts are stored transposed: reading
        a few rows of the result touches only their bytes."""
        if not self.experts[0].lies_across:
            return self
        turned = tuple(matrix.turned() for matrix in self.experts)
        return replace(self, experts=turned, biases=(), shared=None, shared_bias=None)

    def of_rows(self, pieces: Sequence[slice]) -> ExpertGroup:
        """The same rows of every expert as a group; without biases and the always-on expert.
        pieces: with a start and an end, one after another."""
        chosen = tuple(
            MatrixRows(matrix.info, matrix.slot, matrix, tuple(pieces)) for matrix in self.experts
        )
        return replace(self, experts=chosen, biases=(), shared=None, shared_bias=None)

    def with_shared(self) -> ExpertGroup:
        """The group with the always-on expert as its last one (extended DeRS), if it has the shape,
        dtype and bias of the others; else the group itself."""
        if self.shared is None or (self.shared_bias is None) != (not self.biases):
            return self
        first = self.experts[0]
        if (self.shared.shape, self.shared.dtype) != (first.shape, first.dtype):
            return self
        biases = (*self.biases, self.shared_bias) if self.shared_bias else ()
        return replace(self, experts=(*self.experts, self.shared), biases=biases)


def _will_need(tensors: list[FileTensor]) -> None:
    if tensors[0].is_remote or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        for tensor in tensors:
            with open(tensor.file, "rb") as file:
                begin, count = tensor.begin, tensor.nbytes
                os.posix_fadvise(file.fileno(), begin, count, os.POSIX_FADV_WILLNEED)

"""Stacks of matrices: several of one shape and dtype, as views, wherever they lie on a disk."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from ders_core.checkpoint.matrix import Matrix, MatrixRows
from ders_core.compute.memory import free_memory
from ders_core.files.cold_reads import goes_past_cache
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import as_float32
from ders_core.files.remote import concurrently
from ders_core.files.tensor import FileTensor, words_of_each
from ders_core.later import np, torch

T = TypeVar("T")

AHEAD_BYTES = 128 << 10
"""Asked for at a time: Linux reads no more for one call than it reads ahead of a reader, which is
this much unless it was set, however many bytes the call names."""

CACHED_SLAB_BYTES = 8 << 20
"""Of some rows of all matrices that one thread both reads and works on: it is still in the
processor's cache then."""


class MatrixStack(ABC):
    """K matrices of one shape and dtype, as views: `[K, out, in]`.

    It is what is encoded as one: the experts of a group, or a tensor outside of them.
    """

    @property
    @abstractmethod
    def matrices(self) -> tuple[Matrix, ...]:
        """The K matrices; at least one."""

    @property
    @abstractmethod
    def prefix(self) -> str:
        """In a packed checkpoint its parts are the tensors `<prefix>.<part>`."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, as messages name it."""

    one_of_many: ClassVar[str] = "expert"
    """What one of the matrices is called where a tensor holds several."""

    @abstractmethod
    def of_rows(self, pieces: Sequence[slice]) -> Self:
        """The same rows of every matrix, as a stack. pieces: with a start and an end, one after
        another."""

    def rows_of_matrices(self, pieces: Sequence[slice]) -> tuple[Matrix, ...]:
        """The matrices of `of_rows`."""
        return tuple(
            MatrixRows(matrix.info, matrix.slot, matrix, tuple(pieces)) for matrix in self.matrices
        )

    @property
    def added(self) -> tuple[Matrix, ...]:
        """What is stored with the matrices as it is: biases, `[out, 1]` each."""
        return ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, out, in)"""
        return len(self.matrices), *self.matrices[0].shape

    @property
    def dtype(self) -> Dtype:
        return self.matrices[0].dtype

    @cached_property
    def nbytes(self) -> int:
        """Bytes on disk, biases included."""
        return _nbytes(self.matrices) + _nbytes(self.added)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The names of the tensors that hold the stack, or a part of it."""
        matrices = (*self.matrices, *self.added)
        return tuple(dict.fromkeys(matrix.info.name for matrix in matrices))

    def matrix_name(self, number: int) -> str:
        """One matrix, as an error message names it."""
        matrix = self.matrices[number]
        alone = matrix.nbytes == matrix.info.nbytes
        return matrix.info.name if alone else f"{matrix.info.name} ({self.one_of_many} {number})"

    def read(self, number: int | None = None, rows: slice | None = None) -> torch.Tensor:
        """`[K, rows, in]`, or `[rows, in]` of one matrix, in the storage dtype."""
        if number is not None:
            return self.matrices[number].read(rows)
        return torch.stack(self._each(lambda matrix: matrix.read(rows)))

    def read_into(self, out: torch.Tensor, rows: slice) -> None:
        """Read rows of every matrix into `[K, rows, in]`, contiguous and in the storage dtype."""
        places = list(zip(self.matrices, out.unbind(), strict=True))
        if self.matrices[0].info.is_remote:
            concurrently(lambda place: place[0].read_into(place[1], rows), places)
        else:
            for matrix, place in places:
                matrix.read_into(place, rows)

    def read_biases(self) -> torch.Tensor:
        """`[K, out]` in the storage dtype."""
        return torch.stack([bias.read()[:, 0] for bias in self.added])

    def read_ahead(self, first: int = 0, at_once: int = CACHED_SLAB_BYTES) -> None:
        """Ask the system to read the matrices, from a number on, from a local disk into its page
        cache, without waiting for it; not if they are read past it, or memory is short, where they
        would push out what is read now. at_once: so many bytes of all matrices are read then at a
        time."""
        if free_memory(torch.device("cpu")) < 2 * self.nbytes:
            return
        chosen = self.matrices[first:]
        infos = {info.name: info for matrix in chosen for info in matrix.info.sources()}
        tensors = list(infos.values())
        if not tensors:
            return
        with suppress(OSError):
            if not tensors[0].is_remote and not self._is_read_past_cache(tensors[0].file, at_once):
                threading.Thread(target=_will_need, args=(tensors,), daemon=True).start()

    def _is_read_past_cache(self, file: Path, at_once: int) -> bool:
        """Whether so many bytes of all matrices, read at a time, go past the cache."""
        first = self.matrices[0]
        of_each = min(first.nbytes, at_once // len(self.matrices))
        return first.slot.is_contiguous and goes_past_cache(file, of_each)

    def middle(self, lines: int, values: int) -> np.ndarray:
        """`[K, n]` float32: a few rows of each matrix (see `Matrix.middle`)."""
        if {Matrix} == set(map(type, self.matrices)) and len(self._slots) == 1:
            shape, offset = self.matrices[0].middle_place(lines, values)
            tensors = [matrix.info for matrix in self.matrices]
            words = words_of_each(tensors, offset, shape, self.matrices[0].slot.strides)
            if words is not None:
                return as_float32(words, self.dtype).reshape(len(tensors), -1)
        return np.stack(self._each(lambda matrix: matrix.middle(lines, values)))

    @property
    def _slots(self) -> set[int]:
        """Which slots the matrices have, by their ids."""
        return {id(matrix.slot) for matrix in self.matrices}

    def _each(self, read: Callable[[Matrix], T]) -> list[T]:
        """What is read of each matrix; of several at once where each read is a walk."""
        if self.matrices[0].info.is_remote:
            return list(concurrently(read, self.matrices))
        return [read(matrix) for matrix in self.matrices]


def _nbytes(matrices: tuple[Matrix, ...]) -> int:
    """Bytes on disk: of those of one type, which have one shape, the same for each."""
    types = list(map(type, matrices))
    return sum(types.count(kind) * matrices[types.index(kind)].nbytes for kind in set(types))


def _will_need(tensors: list[FileTensor]) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        for tensor in tensors:
            with open(tensor.file, "rb") as file:
                for begin in range(tensor.begin, tensor.end, AHEAD_BYTES):
                    count = min(AHEAD_BYTES, tensor.end - begin)
                    os.posix_fadvise(file.fileno(), begin, count, os.POSIX_FADV_WILLNEED)

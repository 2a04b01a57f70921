"""Tensors that are read in parts: what every reader of one offers, and the tensors of files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol

from ders_core.errors import CheckpointError
from ders_core.files.address import is_remote, read_range, read_ranges
from ders_core.files.cold_reads import fill
from ders_core.files.desks import BLOCK, chunk
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import WORDS
from ders_core.files.place_errors import reading
from ders_core.files.spec import TensorSpec
from ders_core.later import np, torch

CHUNK_BYTES = 8 << 20
MAPPED_BYTES = 1 << 20
"""A few values that lie together are read: mapping a file costs several times as much. More of them
are mapped."""

REMOTE_CHUNK_BYTES = 64 << 20
"""One read of a file at an address; it is split into several requests."""


class TensorReader(Protocol):
    """A tensor whose values are read when they are needed.

    It is stored in a file (`FileTensor`), or is computed from tensors that are. Elements are
    counted in row-major order. Reading is safe from several threads.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> Dtype:
        """The storage dtype: every read gives it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def file_name(self) -> str:
        """The file that an error message names."""

    @property
    def is_remote(self) -> bool:
        """Whether each read is a walk over a network."""

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or `rows` (step 1) of its first dimension. Raises CheckpointError."""

    def elements(self, first: int, count: int) -> torch.Tensor:
        """`count` elements `[count]` from the `first` on. Raises CheckpointError."""

    def read_into(self, out: torch.Tensor, first: int) -> None:
        """Fill a contiguous tensor of the storage dtype with the elements from the `first` on.

        Raises CheckpointError.
        """

    def strided(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        """A copy of a matrix that is scattered among the elements, its first value at `offset`.

        strides: elements between neighbouring rows and columns. Raises CheckpointError.
        """

    def words(self, offset: int, shape: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
        """The bits of what `strided` gives, as unsigned integers of an element's size."""

    def raw(self) -> Iterator[bytes | memoryview]:
        """All bytes, in chunks, for copying them unchanged. Raises CheckpointError."""

    def sources(self) -> tuple[FileTensor, ...]:
        """The tensors in files from which it is read."""


class FileTensor(NamedTuple):
    """A tensor in a file, as a header describes it. begin, end: byte positions in `file`.

    A tuple, because headers of 100,000 tensors are read: a frozen dataclass takes three times as
    long to make.
    """

    name: str
    spec: TensorSpec
    file: Path
    begin: int
    end: int

    @property
    def dtype(self) -> Dtype:
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def file_name(self) -> str:
        return self.file.name

    @property
    def is_remote(self) -> bool:
        return is_remote(self.file)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """Raises CheckpointError if the file cannot be read to the tensor's end."""
        return read_rows(self, rows)

    def elements(self, first: int, count: int) -> torch.Tensor:
        """Raises CheckpointError if the file cannot be read to their end."""
        return read_elements(self, first, count)

    def read_into(self, out: torch.Tensor, first: int) -> None:
        """Raises CheckpointError if the file cannot be read to the elements' end."""
        memory = out.view(-1).view(torch.uint8).numpy()
        begin = self.begin + first * self.dtype.itemsize
        if self.is_remote:
            data = read_range(self.file, begin, begin + len(memory))
            memory[:] = np.frombuffer(data, np.uint8)
            return
        try:
            fill(self.file, begin, memory)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{self.file.name}: tensor {self.name!r} cannot be read ({error}); "
                "the file is damaged or was changed while it was open, so copy it again"
            ) from error

    def strided(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        """Touch only the pages of the file that hold a value of the matrix.

        Of a remote file, read everything between the matrix's first value and its last. Raises
        CheckpointError if the file ends before the tensor.
        """
        return torch.from_numpy(self.words(offset, shape, strides)).view(self.dtype.torch)

    def words(self, offset: int, shape: tuple[int, int], strides: tuple[int, int]) -> np.ndarray:
        """Touches and raises as `strided`."""
        size, steps = self.dtype.itemsize, tuple(step * self.dtype.itemsize for step in strides)
        count = span(shape, strides)
        if self.is_remote or _is_small_piece(shape, strides, size):
            begin = self.begin + offset * size
            with reading(self.file):
                data = read_range(self.file, begin, begin + count * size)
            if len(data) < count * size:
                raise self.ends_early()
            flat = np.frombuffer(data, WORDS[size])
            return np.array(np.lib.stride_tricks.as_strided(flat, shape, steps), order="C")
        with reading(self.file):
            if self.file.stat().st_size < self.end:
                raise self.ends_early()
            mapped = np.memmap(self.file, WORDS[size], "r", self.begin, (self.nbytes // size,))
        view = np.lib.stride_tricks.as_strided(mapped[offset:], shape, steps)
        return np.array(view, order="C")

    def ends_early(self) -> CheckpointError:
        """The error for a file that is shorter than its header says."""
        return CheckpointError(
            f"{self.file.name} ends inside tensor {self.name!r}; it was changed while it was open, "
            "so copy it again"
        )

    def raw(self) -> Iterator[bytes | memoryview]:
        """Raises CheckpointError if the file cannot be read to the tensor's end."""
        if self.is_remote:
            for begin in range(self.begin, self.end, REMOTE_CHUNK_BYTES):
                yield read_range(self.file, begin, min(begin + REMOTE_CHUNK_BYTES, self.end))
            return
        begin = self.begin
        while begin < self.end:
            end = begin + CHUNK_BYTES
            end = min(end - end % BLOCK, self.end)  # so that one read past the cache gives a chunk
            memory = chunk(end - begin)
            with reading(self.file):
                try:
                    fill(self.file, begin, memory)
                except EOFError as error:
                    raise CheckpointError(
                        f"{self.file.name} ends inside tensor {self.name!r}; copy the file again"
                    ) from error
            yield memoryview(memory)  # type: ignore[arg-type]
            begin = end

    def sources(self) -> tuple[FileTensor, ...]:
        return (self,)


def read_rows(tensor: TensorReader, rows: slice | None) -> torch.Tensor:
    """`TensorReader.read` in terms of `elements`."""
    shape, first = tensor.shape, 0
    if rows is not None:
        first, last, _ = rows.indices(shape[0])
        shape = (max(last - first, 0), *shape[1:])
    begin = first * math.prod(tensor.shape[1:])
    return tensor.elements(begin, math.prod(shape)).reshape(shape)


def read_elements(tensor: TensorReader, first: int, count: int) -> torch.Tensor:
    """`TensorReader.elements` in terms of `read_into`."""
    # numpy's memory, for which Linux takes huge pages: touching small ones costs as much as reading
    size = count * tensor.dtype.torch.itemsize
    memory = np.empty(max(size, 1), dtype=np.uint8)  # of nothing there is no view
    values = torch.from_numpy(memory)[:size].view(tensor.dtype.torch)
    tensor.read_into(values, first)
    return values


def read_span(
    tensor: TensorReader, offset: int, shape: tuple[int, int], strides: tuple[int, int]
) -> torch.Tensor:
    """`TensorReader.strided`, by reading everything between the first value and the last."""
    flat = tensor.elements(offset, span(shape, strides))
    return flat.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)


def words_of_each(
    tensors: Sequence[TensorReader],
    offset: int,
    shape: tuple[int, int],
    strides: tuple[int, int],
) -> np.ndarray | None:
    """What `words` gives of each of several tensors of one dtype, `[K, *shape]`. A file that holds
    many is opened once.

    None where each is to be read by itself: for what lies scattered or at an address, is large, or
    is no tensor in a file. Raises CheckpointError if a file ends before its tensor.
    """
    held = [tensor for tensor in tensors if isinstance(tensor, FileTensor)]
    size = tensors[0].dtype.itemsize
    is_row_major = strides[1] == 1 and _is_small_piece(shape, strides, size)
    if len(held) < len(tensors) or held[0].is_remote or not is_row_major:
        return None
    pieces = []
    nbytes = math.prod(shape) * size
    for file, in_file in groupby(held, key=attrgetter("file")):
        members = list(in_file)
        begins = [tensor.begin + offset * size for tensor in members]
        with reading(file):
            parts = read_ranges(file, [(begin, begin + nbytes) for begin in begins])
        for tensor, part in zip(members, parts, strict=True):
            if len(part) < nbytes:
                raise tensor.ends_early()
        pieces += parts
    return np.frombuffer(b"".join(pieces), WORDS[size]).reshape(len(tensors), *shape)


def _is_small_piece(shape: tuple[int, int], strides: tuple[int, int], size: int) -> bool:
    """Whether the values of a matrix, of `size` bytes each, lie together and are few."""
    count = math.prod(shape)
    return span(shape, strides) == count and count * size <= MAPPED_BYTES


def span(shape: tuple[int, int], strides: tuple[int, int]) -> int:
    """How many elements lie from a scattered matrix's first value to its last."""
    if not math.prod(shape):
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))

"""The header of one safetensors file, read and checked whole.

A header is untrusted: every way in which it can lie has its own sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ders_core.errors import CheckpointError
from ders_core.files.address import file_size, is_remote, read_range
from ders_core.files.spec import DTYPES, TensorSpec

MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors library sets itself."""

LARGEST_NUMBER = 1 << 63
"""No dimension and no file position reaches it."""

CHUNK_BYTES = 8 << 20
FAR_CHUNK_BYTES = 64 << 20
"""What is read at once from elsewhere, in several pieces."""

GUESSED_BYTES = 32 << 10
"""Read of a file elsewhere before its header's length is known: one round trip for most."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` are byte positions in `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or `rows` of its first dimension (step 1), in its storage dtype.

        Raises CheckpointError if the file cannot be read to the tensor's end.
        """
        shape = self.shape
        first = 0
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            shape = (max(last - first, 0), *shape[1:])
        return self.elements(first * math.prod(self.shape[1:]), math.prod(shape)).reshape(shape)

    def elements(self, first: int, count: int) -> torch.Tensor:
        """`count` elements `[count]` from the `first` on, in the order in which they lie on disk.

        Raises CheckpointError if the file cannot be read to their end.
        """
        found = torch.empty(count, dtype=self.dtype)
        self.read_into(found, first)
        return found

    def read_into(self, out: torch.Tensor, first: int) -> None:
        """Fill a contiguous tensor of the storage dtype with the elements from the `first` on.

        Raises CheckpointError if the file cannot be read to their end.
        """
        wanted = out.view(-1).view(torch.uint8).numpy()
        begin = self.begin + first * self.dtype.itemsize
        if is_remote(self.file):
            data = read_range(self.file, begin, begin + len(wanted))
            wanted[:] = np.frombuffer(data, np.uint8)
            return
        try:
            with open(self.file, "rb", buffering=0) as file:
                file.seek(begin)
                _fill(file, wanted)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{self.file.name}: tensor {self.name!r} cannot be read ({error}); "
                "the file is damaged or was changed while it was open, so copy it again"
            ) from error

    def strided(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        """A copy of a matrix that lies scattered among the elements, the first of it at `offset`.

        Pages of the file that hold none of it are not touched. Of a file elsewhere, all that lies
        between the matrix's first value and its last is read. Raises CheckpointError if the file
        ends before the tensor.
        """
        if is_remote(self.file):
            return self._spanned(offset, shape, strides)
        size = self.dtype.itemsize
        words = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
        if self.file.stat().st_size < self.end:
            raise CheckpointError(
                f"{self.file.name} ends inside tensor {self.name!r}; it was changed while it was "
                "open, so copy it again"
            )
        mapped = np.memmap(self.file, words, "r", self.begin, (self.nbytes // size,))
        steps = tuple(step * size for step in strides)
        view = np.lib.stride_tricks.as_strided(mapped[offset:], shape, steps)
        return torch.from_numpy(np.array(view, order="C")).view(self.dtype)

    def _spanned(
        self, offset: int, shape: tuple[int, int], strides: tuple[int, int]
    ) -> torch.Tensor:
        """As `strided`, from all that lies between the first value and the last."""
        span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        flat = self.elements(offset, span if math.prod(shape) else 0)
        return flat.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)

    def sources(self) -> tuple[TensorInfo, ...]:
        """The tensors on disk from which it is read."""
        return (self,)

    def raw(self) -> Iterator[bytes]:
        """The tensor's bytes in chunks, for copying without a look inside."""
        if is_remote(self.file):
            for begin in range(self.begin, self.end, FAR_CHUNK_BYTES):
                yield read_range(self.file, begin, min(begin + FAR_CHUNK_BYTES, self.end))
            return
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.begin)
            left = self.nbytes
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise CheckpointError(
                        f"{self.file.name} ends inside tensor {self.name!r}; copy the file again"
                    )
                left -= len(chunk)
                yield chunk


def _fill(file: Any, array: Any) -> None:
    """Read until a flat uint8 array is full (one read returns at most 2 GiB on Linux)."""
    view, position = memoryview(array), 0
    while position < len(view):
        count = file.readinto(view[position : position + (1 << 30)])
        if not count:
            raise EOFError("the file ends too early")
        position += count


def read_header(
    path: Path, size: int | None = None
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of one safetensors file, and its free-form metadata.

    Reads the header only. size: of the file in bytes, where it is known. Raises CheckpointError if
    the file is truncated, is no safetensors file, or its header disagrees with itself or with the
    file's size.
    """
    size = file_size(path) if size is None else size
    start = read_range(path, 0, min(size, GUESSED_BYTES if is_remote(path) else 8))
    if len(start) < 8:
        raise CheckpointError(f"{path.name} is {size} bytes long, too short for safetensors")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path.name} is not a safetensors file: its header would be {length} bytes long"
        )
    end = min(8 + length, size)
    text = start[8:end] + (read_range(path, len(start), end) if end > len(start) else b"")
    if len(text) < length:
        raise CheckpointError(f"{path.name} is truncated inside its header; copy the file again")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: the header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path.name}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path.name}: the header's __metadata__ is not an object")
    data_begin = 8 + length
    tensors = {name: _tensor_info(path, name, entry, data_begin) for name, entry in entries.items()}
    _check_cover(path, tensors, data_begin, size)
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _tensor_info(path: Path, name: str, entry: Any, data_begin: int) -> TensorInfo:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        whole = isinstance(shape, list) and isinstance(dtype_name, str)
        whole = whole and all(type(n) is int and 0 <= n < LARGEST_NUMBER for n in numbers)
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path.name}: the header's entry for {name!r} is malformed")
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise CheckpointError(
            f"{path.name}: tensor {name!r} has dtype {dtype_name!r}, which is not supported; "
            f"supported are {', '.join(DTYPES)}"
        )
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path.name}: the header gives {name!r} {end - begin} bytes, but {dtype_name} "
            f"{list(shape)} takes {math.prod(shape) * dtype.itemsize}; the file is damaged"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_begin + begin, data_begin + end)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], begin: int, size: int) -> None:
    """The tensors must lie end to end from `begin` to the file's end."""
    position = begin
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            what = "overlaps another tensor" if info.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path.name}: the header's offsets are wrong: {info.name!r} {what}"
            )
        position = info.end
    if position > size:
        raise CheckpointError(
            f"{path.name} is truncated: its header needs {position} bytes, the file has {size}; "
            "copy or download it again"
        )
    if position < size:
        raise CheckpointError(
            f"{path.name} has {size - position} bytes that its header does not account for; "
            "the file is damaged"
        )

"""Rows of packed tensors: merely read, or hashed too, so that they are not read again for that."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ders_core.compute.buffers import fresh
from ders_core.files.cold_reads import reading_once
from ders_core.files.tensor import FileTensor
from ders_core.later import torch

if TYPE_CHECKING:
    from hashlib import _Hash

ReadRows = Callable[[FileTensor, slice], "torch.Tensor"]
"""`read(tensor, rows)` gives rows, step 1, of a tensor's first dimension. Raises CheckpointError if
the file cannot be read."""


def rows_in_reused_memory(tensor: FileTensor, rows: slice) -> torch.Tensor:
    """As of `ReadRows`, in memory that is used again (`fresh`)."""
    first, last, _ = rows.indices(tensor.shape[0])
    values = fresh((max(last - first, 0), *tensor.shape[1:]), tensor.dtype.torch)
    if values.numel():
        tensor.read_into(values, first * math.prod(tensor.shape[1:]))
    return values


@dataclass
class _Hashed:
    """A tensor's bytes up to `end`, as they are on disk."""

    tensor: FileTensor
    digest: _Hash = field(default_factory=hashlib.sha256)
    end: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, chunk: memoryview | bytes) -> None:
        self.digest.update(chunk)
        self.end += len(chunk)


class HashedReads:
    """Checksums of tensors from whose beginning to whose end rows are read: of the bytes that these
    reads gave, so that a disk is asked for them once, past the page cache. Rows that are left out
    are read for the checksum alone. If they are wanted later, because another thread overtook the
    one that wants them, or again, they are read a second time, and these bytes are not hashed. Safe
    to use from several threads.
    """

    def __init__(self) -> None:
        self._hashed: dict[str, _Hashed] = {}
        self._known: dict[str, str] = {}
        self._finished: list[FileTensor] = []

    def rows(self, tensor: FileTensor, rows: slice) -> torch.Tensor:
        """As of `ReadRows`. One thread at a time reads rows of a tensor that were not read yet:
        another one, for later rows, waits for them."""
        first, last, _ = rows.indices(tensor.shape[0])
        width = tensor.nbytes // max(tensor.shape[0], 1)
        begin, end = first * width, last * width
        hashed = self._of(tensor)
        with hashed.lock:
            if end > hashed.end:
                self._read_on(tensor, hashed, begin)
                with reading_once():
                    values = rows_in_reused_memory(tensor, rows)
                flat = values.view(-1).view(torch.uint8).numpy()
                hashed.add(memoryview(flat)[hashed.end - begin :])  # type: ignore[arg-type]
                if end == tensor.nbytes:
                    self._finished.append(tensor)
                return values
        return rows_in_reused_memory(tensor, rows)

    def copied(self, tensor: FileTensor, checksum: str) -> None:
        """Take the checksum of a tensor whose bytes were read, and hashed, to be copied."""
        self._known[tensor.name] = checksum
        self._finished.append(tensor)

    def finished(self) -> Iterator[FileTensor]:
        """Tensors whose checksum is known, and was not when this was asked before."""
        while self._finished:
            yield self._finished.pop()

    def begun(self) -> list[FileTensor]:
        """Tensors of which rows were read."""
        return [hashed.tensor for hashed in [*self._hashed.values()]]

    def checksum(self, tensor: FileTensor) -> str:
        """Hex SHA-256 of a tensor's bytes. Reads what no read gave; raises CheckpointError if the
        file cannot be read."""
        if tensor.name in self._known:
            return self._known[tensor.name]
        hashed = self._of(tensor)
        with hashed.lock:
            self._read_on(tensor, hashed, tensor.nbytes)
            return hashed.digest.hexdigest()

    def _of(self, tensor: FileTensor) -> _Hashed:
        return self._hashed.setdefault(tensor.name, _Hashed(tensor))

    def _read_on(self, tensor: FileTensor, hashed: _Hashed, end: int) -> None:
        """Hash the bytes up to `end`."""
        if hashed.end < end:
            left = tensor._replace(begin=tensor.begin + hashed.end, end=tensor.begin + end)
            for chunk in left.raw():
                hashed.add(chunk)

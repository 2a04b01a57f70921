"""Checksums of many tensors, each by a thread of its own: hashing is what takes the time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from ders_core.compute.pools import cores, in_order
from ders_core.files.checksum import checksum
from ders_core.files.tensor import TensorReader

Tensor = TypeVar("Tensor", bound=TensorReader)


def checksums(
    tensors: Sequence[Tensor], hash_of: Callable[[Tensor], str] = checksum
) -> Generator[tuple[Tensor, str]]:
    """(tensor, hex SHA-256 of its bytes) in order, some tensors ahead of the caller. hash_of:
    that of one, by any thread. Raises CheckpointError if a file cannot be read."""
    count = min(cores(), len(tensors))
    if count < 2:
        yield from ((tensor, hash_of(tensor)) for tensor in tensors)
        return
    with (
        ThreadPoolExecutor(count, "checksum") as pool,
        closing(in_order(pool, hash_of, tensors, 2 * count)) as found,
    ):
        yield from zip(tensors, found, strict=True)

"""Checksums of many tensors, each by a thread of its own: hashing is what takes the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from ders_core.compute.pools import cores, in_order
from ders_core.files.checksum import checksum
from ders_core.files.cold_reads import as_here
from ders_core.files.tensor import TensorReader


def checksums(tensors: Sequence[TensorReader]) -> Iterator[tuple[TensorReader, str]]:
    """(tensor, hex SHA-256 of its bytes) in order, some tensors ahead of the caller. Raises
    CheckpointError if a file cannot be read."""
    count = min(cores(), len(tensors))
    if count < 2:
        yield from ((tensor, checksum(tensor)) for tensor in tensors)
        return
    with (
        ThreadPoolExecutor(count, "checksum") as pool,
        closing(in_order(pool, as_here(checksum), tensors, 2 * count)) as found,
    ):
        yield from zip(tensors, found, strict=True)

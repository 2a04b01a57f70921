"""Safetensors files whose tensors are written one by one, in any order, each at its final place.

Where the dtypes and shapes of a file are known before its values are, its header can be written
first. What was not written yet is a hole that takes no room on the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ders_core.files.aside import written_aside
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import NO_METADATA, Specs, encode_header


def laid_out(
    path: Path, specs: Specs, metadata: Mapping[str, str] | None = NO_METADATA
) -> dict[str, FileTensor]:
    """Where the tensors of a file will lie that holds `specs` in this order."""
    begin, tensors = len(encode_header(specs, metadata)), {}
    for name, spec in specs.items():
        tensors[name] = FileTensor(name, spec, path, begin, begin + spec.nbytes)
        begin += spec.nbytes
    return tensors


def reserve(path: Path, specs: Specs, metadata: Mapping[str, str] | None = NO_METADATA) -> bool:
    """Make a file with its header and no values, unless it is there.

    Returns whether it was there: with this header and the whole length, so that values which were
    written still count; any other file is replaced. Raises OSError.
    """
    header = encode_header(specs, metadata)
    size = len(header) + sum(spec.nbytes for spec in specs.values())
    if path.is_file() and path.stat().st_size == size:
        with open(path, "rb") as file:
            if file.read(len(header)) == header:
                return True
    with written_aside(path, sync=False) as aside, open(aside, "wb") as file:
        file.write(header)
        file.truncate(size)
    return False


def write_at(place: FileTensor, chunks: Iterable[bytes | memoryview]) -> str:
    """Write the bytes of a tensor at its place in a file that `reserve` made; not synced. Returns
    their hex SHA-256. Raises OSError."""
    digest, position = hashlib.sha256(), place.begin
    handle = os.open(place.file, os.O_WRONLY)
    try:
        for chunk in chunks:
            digest.update(chunk)
            rest = memoryview(chunk)
            if position + len(rest) > place.end:
                raise AssertionError(f"{place.name}: more than {place.nbytes} bytes")
            while rest:
                count = os.pwrite(handle, rest, position)
                position, rest = position + count, rest[count:]
    finally:
        os.close(handle)
    if position != place.end:
        raise AssertionError(f"{place.name}: {position - place.begin} of {place.nbytes} bytes")
    return digest.hexdigest()

"""Safetensors files whose tensors are written one by one, in any order, each at its final place.

Where the dtypes and shapes of a file are known before its values are, its header can be written
first. What was not written yet is a hole that takes no room on the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ders_core.files.aside import written_aside
from ders_core.files.past_cache import written_from
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


class Growing:
    """A tensor that is written from its beginning to its end, a piece at a time; not synced."""

    def __init__(self, place: FileTensor) -> None:
        """place: in a file that `reserve` made."""
        self.place = place
        self._digest, self._position = hashlib.sha256(), place.begin

    def append(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the next bytes. Raises OSError."""
        place = self.place
        with written_from(place.file, self._position, place.nbytes) as file:
            for chunk in chunks:
                self._digest.update(chunk)
                if self._position + len(chunk) > place.end:
                    raise AssertionError(f"{place.name}: above {place.nbytes} bytes")
                self._position += file.write(chunk)

    def finish(self) -> str:
        """Hex SHA-256 of the bytes, all of which must be written."""
        if self._position != self.place.end:
            written = self._position - self.place.begin
            raise AssertionError(f"{self.place.name}: {written} of {self.place.nbytes} bytes")
        return self._digest.hexdigest()


def write_at(place: FileTensor, chunks: Iterable[bytes | memoryview]) -> str:
    """Write the bytes of a tensor at its place; returns their hex SHA-256. Raises OSError."""
    growing = Growing(place)
    growing.append(chunks)
    return growing.finish()

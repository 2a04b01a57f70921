"""Safetensors files whose tensors are written one by one, in any order, each at its final place.

Where the dtypes and shapes of a file are known before its values are, its tensors have places from
the beginning. What was not written yet is a hole that takes no room on the disk. Tensors whose
shapes are not known are appended behind these; for their entries the header has room.
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
    path: Path,
    specs: Specs,
    metadata: Mapping[str, str] | None = NO_METADATA,
    header_bytes: int = 0,
) -> dict[str, FileTensor]:
    """Where the tensors of a file will lie that holds `specs` in this order. header_bytes: with
    room for further entries (see `encode_header`)."""
    begin, tensors = len(encode_header(specs, metadata, header_bytes)), {}
    for name, spec in specs.items():
        tensors[name] = FileTensor(name, spec, path, begin, begin + spec.nbytes)
        begin += spec.nbytes
    return tensors


def reserve(
    path: Path,
    specs: Specs,
    metadata: Mapping[str, str] | None = NO_METADATA,
    header_bytes: int = 0,
) -> bool:
    """Make a file with places for `specs` and no values, unless it is there. header_bytes: as of
    `laid_out`.

    Returns whether it was there: with a header of that length and at least as many bytes, so that
    values which were written still count; any other file is replaced. Raises OSError.
    """
    header = encode_header(specs, metadata, header_bytes)
    size = len(header) + sum(spec.nbytes for spec in specs.values())
    if path.is_file() and path.stat().st_size >= size:
        with open(path, "rb") as file:
            if file.read(8) == header[:8]:
                return True
    with written_aside(path, sync=False) as aside, open(aside, "wb") as file:
        file.write(header)
        file.truncate(size)
    return False


def finish(
    path: Path,
    specs: Specs,
    metadata: Mapping[str, str] | None = NO_METADATA,
    header_bytes: int = 0,
) -> None:
    """Give a file, whose tensors are all written, the header that tells of them, and its length.
    header_bytes: as of `laid_out`; there must be room for the header. Raises OSError."""
    header = encode_header(specs, metadata, header_bytes)
    if header_bytes and len(header) != header_bytes:
        raise AssertionError(f"{path}: a header of {len(header)} bytes, room for {header_bytes}")
    with open(path, "rb+") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))


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

"""Encoded groups on disk, waiting to be written into the packed checkpoint.

Each group is one safetensors file and one note, a JSON file next to it that says how to read it.
The note is written last, so a group with a note is finished. An interrupted run continues from
these.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import OutputError
from ders_core.files.header import read_header
from ders_core.files.json_object import read_json
from ders_core.files.tensor import TensorReader
from ders_core.files.writer import write_json
from ders_core.packed.writer import CheckWritten
from ders_core.pipeline.report import ReportEntry

DIRECTORY = ".ders-groups"

Key = tuple[int, str]
"""(layer, projection) of a group."""


@dataclass(frozen=True)
class StagedGroup:
    """One encoded group. codec, uses, lengths, bases: as in `PackedGroup`, plain values.

    tensors: full name -> where it is in the staged file. checksums: full name -> hex SHA-256 of
    what was encoded. sha256: of the weights that were encoded (`WeightsDigest`). version: of the
    source's files when they were read (`Store.version`).
    """

    file: Path
    report: ReportEntry
    codec: Any
    uses: tuple[int, ...] | None
    lengths: Mapping[str, tuple[int, ...]]
    bases: tuple[int, ...] | None
    tensors: Mapping[str, TensorReader]
    checksums: Mapping[str, str]
    sha256: str
    version: str

    @classmethod
    def read(cls, file: Path) -> StagedGroup:
        """Read the note and the header. Raises CheckpointError if one of them is damaged."""
        note = read_json(_note(file))
        return cls(
            file=file,
            report=ReportEntry(**note["entry"]),
            codec=note["codec"],
            uses=note["uses"],
            lengths=note["lengths"],
            bases=note["bases"],
            tensors=read_header(file)[0],
            checksums=note["checksums"],
            sha256=note["sha256"],
            version=note["version"],
        )

    def confirm(self, version: str) -> None:
        """Note that files of another version hold the same weights."""
        note = _note(self.file)
        write_json(note, read_json(note) | {"version": version})

    def discard(self) -> None:
        """Forget that the group is finished, so that it is encoded again."""
        _note(self.file).unlink()


class Staging:
    """The directory of staged groups inside an unfinished output."""

    def __init__(self, partial: Path) -> None:
        self._directory = partial / DIRECTORY
        self._directory.mkdir(exist_ok=True)

    def file(self, key: Key) -> Path:
        """Where the group's tensors are staged."""
        layer, projection = key
        return self._directory / f"{layer:05d}-{projection}.safetensors"

    def holds(self, key: Key) -> bool:
        """Whether the group is encoded: both files are there, for `remove` may be interrupted."""
        file = self.file(key)
        return _note(file).is_file() and file.is_file()

    def read(self, keys: Iterable[Key]) -> dict[Key, StagedGroup]:
        """The staged groups with these keys. Raises CheckpointError if one is damaged."""
        return {key: StagedGroup.read(self.file(key)) for key in keys}

    def remove(self) -> None:
        shutil.rmtree(self._directory)


def check_against(groups: Iterable[StagedGroup]) -> CheckWritten:
    """A check that the packed checkpoint holds what was encoded: staged files are not synced, so a
    machine that goes down may damage them.

    The check discards a damaged group and raises OutputError.
    """
    staged = {name: group for group in groups for name in group.checksums}

    def check(name: str, sha256: str) -> None:
        group = staged.get(name)
        if group is not None and sha256 != group.checksums[name]:
            group.discard()
            raise OutputError(
                f"{group.file} was damaged after it was written (the machine may have gone down); "
                "resume, and this group is encoded again"
            )

    return check


def _note(file: Path) -> Path:
    return file.with_suffix(".json")

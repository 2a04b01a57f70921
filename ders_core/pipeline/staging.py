"""Encoded groups on disk, in an unfinished output.

Where the lengths of all tensors are known before any is encoded, each group is written once: to its
place in the weight files that the output will have. Where they depend on the data, a group is
staged as one safetensors file. In the end a large one is moved, and becomes a weight file; small
ones are copied into weight files together (`ders_core.pipeline.own_files`).

Next to either lies a note of the group, a JSON file: what the manifest and the report say about it,
and the checksums of what was written. It is written last, so a group with a note is finished. An
interrupted run continues from these; what a run moved that was killed in the end is moved back.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError, OutputError
from ders_core.files.checksum import checksum
from ders_core.files.header import read_header
from ders_core.files.in_place import laid_out, reserve
from ders_core.files.model_files import INDEX, SUFFIX
from ders_core.files.output import UNFINISHED
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import METADATA, Specs
from ders_core.packed.writer import CheckWritten
from ders_core.pipeline.notes import (
    header_sha256,
    note_of,
    noted_header,
    read_note,
    staged_of,
    write_note,
)
from ders_core.pipeline.plan import Key
from ders_core.pipeline.report import OtherReport, ReportEntry

DIRECTORY = ".ders-groups"


@dataclass(frozen=True)
class StagedGroup:
    """One encoded group, or another tensor. codec, uses, lengths, bases, base_codec, base_lengths,
    without_base: as in `PackedGroup`, plain values.

    note: the file that describes it. tensors: full name -> where it is written. checksums: full
    name -> hex SHA-256 of what was encoded. sha256: of the weights that were encoded
    (`WeightsDigest`). version: of the source's files when they were read (`Store.version`). by:
    the run and the machine that wrote it (`writer_of`).
    """

    note: Path
    report: ReportEntry | OtherReport
    codec: Any
    uses: tuple[int, ...] | None
    lengths: Mapping[str, tuple[int, ...]]
    bases: tuple[int, ...] | None
    tensors: Mapping[str, FileTensor]
    checksums: Mapping[str, str]
    sha256: str
    version: str
    by: str
    base_codec: dict[str, Any] | None
    base_lengths: Mapping[str, tuple[int, ...]]
    without_base: bool

    @classmethod
    def read(cls, note: Path, tensors: Mapping[str, FileTensor]) -> StagedGroup:
        """Read the note, which is whole. tensors: with those of the group."""
        told = _told(note)
        return cls(
            note=note,
            report=_report(told["entry"]),
            codec=told["codec"],
            uses=told["uses"],
            lengths=told["lengths"],
            bases=told["bases"],
            tensors={name: tensors[name] for name in told["checksums"]},
            checksums=told["checksums"],
            sha256=told["sha256"],
            version=told["version"],
            by=told["by"],
            base_codec=told["base_codec"],
            base_lengths=told["base_lengths"],
            without_base=told["without_base"],
        )

    def confirm(self, version: str) -> None:
        """Note that files of another version hold the same weights."""
        write_note(self.note, _told(self.note) | {"version": version})

    def discard(self) -> None:
        """Forget that the group is finished, so that it is encoded again."""
        self.note.unlink()

    def check(self, name: str, sha256: str) -> None:
        """Compare a tensor as it lies on the disk with what was encoded: groups are not synced, so
        a machine that goes down may damage them. A damaged one is discarded. Raises OutputError."""
        if sha256 != self.checksums[name]:
            self.discard()
            raise OutputError(
                f"{self.tensors[name].file} was damaged after it was written (the machine may have "
                "gone down); resume, and this group is encoded again"
            )


class Staging:
    """The groups inside an unfinished output.

    files: weight file of the output -> its tensors, where that is known beforehand.
    """

    def __init__(self, partial: Path, files: Mapping[str, Specs] | None) -> None:
        self._partial = partial
        self._directory = partial / DIRECTORY
        self._directory.mkdir(exist_ok=True)
        self._files = files
        self.places: Mapping[str, FileTensor] | None = None
        """Full name of each tensor of the output -> where it is to be written; None if groups are
        staged."""
        if files is not None:
            self.places = self._reserved(files)
        else:
            self._move_back()
        self.damaged = self._sweep()
        """How many groups were finished, and are to be encoded again."""

    def _sweep(self) -> int:
        """Remove notes that are damaged or do not fit their group's tensors; how many they were."""
        notes = list(self._directory.glob("*.json"))
        damaged = [note for note in notes if not self._is_whole(note)]
        for note in damaged:
            note.unlink()
        return len(damaged)

    def _is_whole(self, note: Path) -> bool:
        told = read_note(note)
        if told is None:
            return False
        if self.places is not None:
            return set(told["checksums"]) <= self.places.keys()
        try:
            tensors, metadata = read_header(staged_of(note))
        except (CheckpointError, OSError):
            return False
        # earlier versions staged without the metadata that a weight file has
        return set(told["checksums"]) <= tensors.keys() and metadata == METADATA

    def _reserved(self, files: Mapping[str, Specs]) -> dict[str, FileTensor]:
        places: dict[str, FileTensor] = {}
        there = True
        for name, specs in files.items():
            path, released = self._unfinished(name), self._partial / name
            if released.is_file() and not path.exists():  # by a run that was killed in the end
                os.rename(released, path)
            there = reserve(path, specs, METADATA) and there
            places |= laid_out(path, specs, METADATA)
        if not there:
            for note in self._directory.glob("*.json"):  # of values that are gone
                note.unlink()
        return places

    def _move_back(self) -> None:
        """Stage again what was moved by a run that was killed in the end; remove what it wrote."""
        (self._partial / INDEX).unlink(missing_ok=True)
        files = list(self._partial.glob(f"*{SUFFIX}"))
        notes = {noted_header(note): note for note in self._directory.glob("*.json") if files}
        for file in files:
            note = notes.get(header_sha256(file))
            if note is None or staged_of(note).exists():
                file.unlink()
            else:
                os.rename(file, staged_of(note))

    def _unfinished(self, name: str) -> Path:
        return self._directory / f"{name}{UNFINISHED}"

    def file(self, key: Key) -> Path:
        """Where the group's tensors are staged, if they are; its note is named after it."""
        if isinstance(key, str):  # a name of any characters and length
            return self._directory / f"other-{sha256(key.encode()).hexdigest()[:32]}.safetensors"
        layer, projection = key
        return self._directory / f"{layer:05d}-{projection}.safetensors"

    def holds(self, key: Key) -> bool:
        """Whether the group is encoded."""
        return note_of(self.file(key)).is_file()

    def read(self, keys: Iterable[Key]) -> dict[Key, StagedGroup]:
        """The groups with these keys, which are finished."""
        groups = {}
        for key in keys:
            file = self.file(key)
            tensors = self.places if self.places is not None else read_header(file)[0]
            groups[key] = StagedGroup.read(note_of(file), tensors)
        return groups

    def release(self) -> None:
        """Give the weight files, which are complete now, the names that they have in the output."""
        for name in self._files or ():
            os.rename(self._unfinished(name), self._partial / name)

    def move(self, files: Mapping[str, Key]) -> None:
        """Make weight files of staged groups. files: name of the weight file -> the group."""
        for name, key in files.items():
            os.rename(self.file(key), self._partial / name)

    def remove(self) -> None:
        shutil.rmtree(self._directory)


def _report(entry: Mapping[str, Any]) -> ReportEntry | OtherReport:
    return OtherReport(**entry) if "name" in entry else ReportEntry(**entry)


def check_against(groups: Iterable[StagedGroup]) -> CheckWritten:
    """A check that the weight files hold what was encoded (see `StagedGroup.check`)."""
    staged = {name: group for group in groups for name in group.checksums}

    def check(name: str, sha256: str) -> None:
        group = staged.get(name)
        if group is not None:
            group.check(name, sha256)

    return check


def check_foreign(groups: Iterable[StagedGroup], run: str) -> Iterator[StagedGroup]:
    """Read back the groups that another run, or another machine, wrote in place; yields each after
    it was compared. Raises OutputError as `StagedGroup.check` does, CheckpointError."""
    for group in groups:
        if group.by != writer_of(run):
            for name, tensor in group.tensors.items():
                group.check(name, checksum(tensor))
            yield group


def writer_of(run: str) -> str:
    """How a group is told that this machine wrote for a run."""
    return f"{run}@{platform.node()}"


def _told(note: Path) -> dict[str, Any]:
    """Raises OutputError if the note was damaged while the run goes on."""
    told = read_note(note)
    if told is None:
        raise OutputError(
            f"{note} was changed or removed by something else while it was used; resume, and its "
            "group is encoded again"
        )
    return told

"""One encoded group in an unfinished output, as the note beside its tensors tells of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import OutputError
from ders_core.files.checksum import checksum
from ders_core.files.header import read_header
from ders_core.files.in_place import write_at
from ders_core.files.tensor import FileTensor
from ders_core.pipeline.appended import Appended, stage
from ders_core.pipeline.arrangement import Ends, Place
from ders_core.pipeline.notes import read_note, staged_of, write_note
from ders_core.pipeline.report import OtherReport, ReportEntry


@dataclass(frozen=True)
class StagedGroup:
    """One encoded group, or another tensor. codec, uses, lengths, bases, base_codec, base_lengths,
    without_base: as in `PackedGroup`, plain values.

    note: the file that describes it. tensors: full name -> where it is written. appended: those
    without fixed places. checksums: full name -> hex SHA-256 of what was encoded. sha256: of the
    weights that were encoded (`WeightsDigest`). version: of the source's files when they were read
    (`Store.version`). by: the run and the machine that wrote it (`writer_of`).
    """

    note: Path
    report: ReportEntry | OtherReport
    codec: Any
    uses: tuple[int, ...] | None
    lengths: Mapping[str, tuple[int, ...]]
    bases: tuple[int, ...] | None
    tensors: Mapping[str, FileTensor]
    appended: Appended
    checksums: Mapping[str, str]
    sha256: str
    version: str
    by: str
    base_codec: dict[str, Any] | None
    base_lengths: Mapping[str, tuple[int, ...]]
    without_base: bool

    @classmethod
    def read(cls, note: Path, fixed: Mapping[str, FileTensor]) -> StagedGroup:
        """Read the note, which is whole. fixed: the places that tensors have from the beginning,
        those of the group among them. Raises OutputError."""
        told = _told(note)
        appended = Appended.load(told["appended"])
        others = {name: fixed[name] for name in told["checksums"] if name not in appended.specs}
        return cls(
            note=note,
            report=_report(told["entry"]),
            codec=told["codec"],
            uses=told["uses"],
            lengths=told["lengths"],
            bases=told["bases"],
            tensors=others | _variable(note, appended),
            appended=appended,
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
        told = _told(self.note) | {"version": version}
        write_note(self.note, told, staged=self.appended.is_staged)

    def stage(self) -> None:
        """Copy what is appended to a file, and cut it off: it is the last there. Raises OutputError
        as `check` does, OSError."""
        if self.appended.places:
            written = stage(staged_of(self.note), self.appended.specs, self.tensors)
            for name, sha256 in written.items():
                self.check(name, sha256)
        self._note_places({}, None)
        for place in reversed(list(self.appended.places.values())):
            os.truncate(self.note.with_name(place.file), place.begin)

    def append(self, places: Mapping[str, Place], ends: Ends) -> None:
        """Copy what is staged to its places. ends: behind them. Raises as `stage` does."""
        for name, place in places.items():
            to = place.tensor(self.note.parent, name, self.appended.specs[name])
            to.file.touch()
            self.check(name, write_at(to, self.tensors[name].raw()))
        self._note_places(places, ends)
        staged_of(self.note).unlink()

    def _note_places(self, places: Mapping[str, Place], ends: Ends | None) -> None:
        appended = self.appended.at(places, ends)
        told = _told(self.note) | {"appended": appended.dump()}
        write_note(self.note, told, staged=appended.is_staged)

    def discard(self) -> None:
        """Forget that the group is finished, so that it is encoded again."""
        self.note.unlink()
        staged_of(self.note).unlink(missing_ok=True)

    def check(self, name: str, sha256: str) -> None:
        """Compare a tensor as it lies on the disk with what was encoded: groups are not synced, so
        a machine that goes down may damage them. A damaged one is discarded. Raises OutputError."""
        if sha256 != self.checksums[name]:
            self.discard()
            raise OutputError(
                f"{self.tensors[name].file} was damaged after it was written (the machine may have "
                "gone down); resume, and this group is encoded again"
            )


def _variable(note: Path, appended: Appended) -> dict[str, FileTensor]:
    """The tensors of a group without fixed places, where they are now."""
    if appended.is_staged:
        return read_header(staged_of(note))[0]
    return appended.tensors(note.parent)


def check_foreign(groups: Iterable[StagedGroup], run: str) -> Iterator[StagedGroup]:
    """Read back the groups that another run, or another machine, wrote; yields each after it was
    compared. Raises OutputError as `StagedGroup.check` does, CheckpointError."""
    for group in groups:
        if group.by != writer_of(run):
            for name, tensor in group.tensors.items():
                group.check(name, checksum(tensor))
            yield group


def writer_of(run: str) -> str:
    """How a group is told that this machine wrote for a run."""
    return f"{run}@{platform.node()}"


def _report(entry: Mapping[str, Any]) -> ReportEntry | OtherReport:
    return OtherReport(**entry) if "name" in entry else ReportEntry(**entry)


def _told(note: Path) -> dict[str, Any]:
    """Raises OutputError if the note was damaged while the run goes on."""
    told = read_note(note)
    if told is None:
        raise OutputError(
            f"{note} was changed or removed by something else while it was used; resume, and its "
            "group is encoded again"
        )
    return told

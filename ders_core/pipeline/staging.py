"""Encoded groups on disk, in an unfinished output.

Each group is written once, to the weight files that the output will have: tensors whose shapes are
known before any is encoded to their places, the others behind those of the groups before it, or as
a file (`ders_core.pipeline.appended`).

Beside these files lies a note of each group, a JSON file: what the manifest and the report say
about it, where its tensors are, and the checksums of what was written. It is written last, so a
group with a note is finished. An interrupted run continues from these; files that a run renamed
that was killed in the end get their names back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.files.in_place import finish, laid_out, reserve
from ders_core.files.model_files import INDEX, SUFFIX
from ders_core.files.output import GROUPS_FOLDER
from ders_core.files.sealed import read_sealed, write_sealed
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import METADATA, Specs, file_names, write_file
from ders_core.pipeline.appended import Appended, Behind
from ders_core.pipeline.arrangement import Arrangement, Place
from ders_core.pipeline.notes import note_of, read_note, staged_of
from ders_core.pipeline.plan import Key
from ders_core.pipeline.staged_group import StagedGroup

NAMES = "names.released"
"""Tells which weight file is which of the files that were not finished; not a note."""


class Staging:
    """The groups inside an unfinished output."""

    def __init__(self, partial: Path, arrangement: Arrangement[Key]) -> None:
        self._partial = partial
        self._directory = partial / GROUPS_FOLDER
        self._directory.mkdir(exist_ok=True)
        self._arrangement = arrangement
        self._before = dict(zip(list(arrangement.variable)[1:], arrangement.variable, strict=False))
        self._move_back()
        self.places = self._reserved()
        """Full name of each tensor with a fixed place -> where it is to be written."""
        self.damaged = self._sweep()
        """How many groups were finished, and are to be encoded again."""

    def _move_back(self) -> None:
        """Undo `release`, of a run that was killed in the end."""
        for name, held in (read_sealed(self._directory / NAMES) or {}).items():
            released, unfinished = self._partial / name, self._directory / held
            if released.is_file() and not unfinished.exists():
                os.rename(released, unfinished)
        for file in (self._directory / NAMES, self._partial / INDEX):
            file.unlink(missing_ok=True)
        for file in self._partial.glob(f"*{SUFFIX}"):
            file.unlink()

    def _reserved(self) -> dict[str, FileTensor]:
        places: dict[str, FileTensor] = {}
        there = True
        for file in self._arrangement.fixed:
            path = self._directory / file.name
            there = reserve(path, file.specs, METADATA, file.header) and there
            places |= laid_out(path, file.specs, METADATA, file.header)
        if not there:
            for note in self._directory.glob("*.json"):  # of values that are gone
                note.unlink()
        return places

    def _sweep(self) -> int:
        """Remove notes that are damaged or do not fit their group's tensors, and staged files
        without a note; how many notes they were."""
        notes = list(self._directory.glob("*.json"))
        damaged = [note for note in notes if not self._is_whole(note)]
        for note in damaged:
            note.unlink()
        for staged in list(self._directory.glob(f"*{SUFFIX}")):
            if not note_of(staged).is_file():
                staged.unlink()
        return len(damaged)

    def _is_whole(self, note: Path) -> bool:
        told = read_note(note)
        if told is None or "appended" not in told:  # earlier versions did not append
            return False
        appended = Appended.load(told["appended"])
        if not set(told["checksums"]) - appended.specs.keys() <= self.places.keys():
            return False
        try:
            if appended.is_staged:
                return read_header(staged_of(note))[0].keys() == appended.specs.keys()
            tensors = appended.tensors(self._directory).values()
            return all(tensor.file.stat().st_size >= tensor.end for tensor in tensors)
        except (CheckpointError, OSError):
            return False

    def file(self, key: Key) -> Path:
        """Where the group's tensors are staged, if they are; its note is named after it."""
        if isinstance(key, str):  # a name of any characters and length
            return self._directory / f"other-{sha256(key.encode()).hexdigest()[:32]}.safetensors"
        layer, projection = key
        return self._directory / f"{layer:05d}-{projection}.safetensors"

    def behind(self, key: Key) -> Behind | None:
        """What a group's tensors are appended behind; None if all have fixed places."""
        if key not in self._arrangement.variable:
            return None
        before = self._before.get(key)
        note = None if before is None else note_of(self.file(before)).name
        return Behind(self._arrangement.tails, note)

    def holds(self, key: Key) -> bool:
        """Whether the group is encoded."""
        return note_of(self.file(key)).is_file()

    def read(self, keys: Iterable[Key]) -> dict[Key, StagedGroup]:
        """The groups with these keys, which are finished. Raises OutputError."""
        return {key: StagedGroup.read(note_of(self.file(key)), self.places) for key in keys}

    def stage_behind_gaps(self) -> None:
        """Stage what is appended behind a group that is to be encoded again, as that may take more
        room, or less. Raises OutputError, CheckpointError, OSError."""
        keys = list(self._arrangement.variable)
        groups = self.read(filter(self.holds, keys))
        for key in reversed(keys[self._gap(groups) :]):
            if key in groups and groups[key].appended.ends is not None:
                groups[key].stage()

    def _gap(self, groups: Mapping[Key, StagedGroup]) -> int:
        """How many groups are, one after another, where they belong."""
        ends, tails = self._arrangement.tails.start, self._arrangement.tails
        for number, key in enumerate(self._arrangement.variable):
            if key not in groups:
                return number
            appended, places = groups[key].appended, dict[str, Place]()
            if not appended.is_own:
                places, ends = tails.append(ends, appended.specs)
            if appended.ends not in (None, ends) or (appended.places or places) != places:
                return number
        return len(self._arrangement.variable)

    def append_staged(self, groups: Mapping[Key, StagedGroup]) -> Iterator[StagedGroup]:
        """Copy small groups that are staged to their places, when all are encoded; yields each
        afterwards. Raises OutputError, CheckpointError, OSError."""
        ends = self._arrangement.tails.start
        for key in self._arrangement.variable:
            group = groups[key]
            if group.appended.is_own:
                continue
            places, ends = self._arrangement.tails.append(ends, group.appended.specs)
            if group.appended.is_staged:
                group.append(places, ends)
                yield group

    def release(self, groups: Mapping[Key, StagedGroup]) -> dict[str, Specs]:
        """Finish the weight files, all of whose tensors are written, and give them the names that
        they have in the output. Returns the tensors of each."""
        variable = {key: groups[key].appended.specs for key in self._arrangement.variable}
        arranged = self._arrangement.files(variable)
        files = dict(zip(file_names(len(arranged)), arranged, strict=True))
        held = {}
        for name, file in files.items():
            if file.own is not None:
                held[name] = self.file(file.own).name
            elif file.name:
                held[name] = file.name
                finish(self._directory / file.name, file.specs, METADATA, file.header)
            else:
                self._copy(self._partial / name, file.specs, groups)
        write_sealed(self._directory / NAMES, held)
        for name, unfinished in held.items():
            os.rename(self._directory / unfinished, self._partial / name)
        return {name: file.specs for name, file in files.items()}

    def _copy(self, path: Path, specs: Specs, groups: Mapping[Key, StagedGroup]) -> None:
        """Write a weight file of tensors that are in several. Raises as `append_staged` does."""
        owners = {name: group for group in groups.values() for name in group.checksums}
        tensors = dict(self.places)
        for group in groups.values():
            tensors |= group.tensors
        written = write_file(path, specs, lambda name: tensors[name].raw(), METADATA)
        for name in written.keys() & owners.keys():
            owners[name].check(name, written[name])

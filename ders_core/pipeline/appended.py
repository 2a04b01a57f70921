"""The tensors of a group whose shapes depend on the data: appended to a weight file.

The place of a group follows from the notes of those before it in the plan. Where one of these is
not finished yet, because several processes or GPUs share groups out, the group is staged as a file
and copied to its place in the end. A large group is such a file in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ders_core.codecs.group import Stacked
from ders_core.files.dtype import Dtype
from ders_core.files.in_place import write_at
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import METADATA, Specs, file_order, write_file
from ders_core.pipeline.arrangement import Ends, Place, Tails
from ders_core.pipeline.notes import read_note
from ders_core.pipeline.own_files import bytes_of, is_own


@dataclass(frozen=True)
class Behind:
    """What a group's tensors are appended behind. tails: of the whole output. note: the name of the
    note of the group before it; None of the first one."""

    tails: Tails
    note: str | None


@dataclass(frozen=True)
class Appended:
    """The variable tensors of a group, as its note tells of them.

    specs: as they are. places: of each; empty if they are staged, as a file. ends: where the next
    group's go, None if that was not known. behind: as `Behind.note`.
    """

    specs: Specs
    places: Mapping[str, Place]
    ends: Ends | None
    behind: str | None

    @property
    def is_staged(self) -> bool:
        return bool(self.specs) and not self.places

    @property
    def is_own(self) -> bool:
        """Whether they are a weight file of their own."""
        return is_own(bytes_of(self.specs))

    def tensors(self, directory: Path) -> dict[str, FileTensor]:
        """Where they are appended. directory: of the files that are not finished."""
        return {
            name: place.tensor(directory, name, self.specs[name])
            for name, place in self.places.items()
        }

    def at(self, places: Mapping[str, Place], ends: Ends | None) -> Appended:
        """The same tensors elsewhere."""
        return replace(self, places=places, ends=ends)

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "specs": {name: [s.dtype.name, s.shape] for name, s in self.specs.items()},
            "places": self.places,
            "ends": self.ends and [[item, *end] for item, end in self.ends.items()],
            "behind": self.behind,
        }

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Appended:
        """The inverse of `dump`."""
        ends = told["ends"]
        return cls(
            {name: TensorSpec(Dtype[d], tuple(s)) for name, (d, s) in told["specs"].items()},
            {name: Place(*place) for name, place in told["places"].items()},
            None if ends is None else {item: (number, end) for item, number, end in ends},
            told["behind"],
        )


def write_variable(
    staged: Path, tensors: Mapping[str, Stacked], behind: Behind | None
) -> tuple[Appended, dict[str, str]]:
    """Write a group's variable tensors, by their full names. staged: the file to write, or beside
    which the files lie that are not finished. behind: None if they are to be staged. Returns what
    the note says of them, and the checksums. Raises OSError."""
    specs = file_order({name: tensor.spec for name, tensor in tensors.items()})
    ends = before = None
    if behind is not None:
        ends, before = _ends(staged.parent, behind), behind.note
    if behind is None or ends is None or is_own(bytes_of(specs)):
        checksums = stage(staged, specs, tensors) if specs else {}
        return Appended(specs, {}, ends, before), checksums
    places, after = behind.tails.append(ends, specs)
    appended = Appended(specs, places, after, before)
    checksums = {}
    for name, tensor in appended.tensors(staged.parent).items():
        tensor.file.touch()
        checksums[name] = write_at(tensor, tensors[name].raw())
    return appended, checksums


def stage(
    staged: Path, specs: Specs, tensors: Mapping[str, Stacked | FileTensor]
) -> dict[str, str]:
    """Write them as a file; returns their checksums. Raises OSError."""
    return write_file(
        staged,
        specs,
        lambda name: tensors[name].raw(),
        METADATA,
        sync=False,  # checksums are compared when another run uses the tensors
        past_cache=is_own(bytes_of(specs)),  # what is copied is read again soon
    )


def _ends(directory: Path, behind: Behind) -> Ends | None:
    """Where the group's tensors go; None if a group before it is not finished."""
    between, name, ends = list[Appended](), behind.note, None
    while name is not None and ends is None:
        told = read_note(directory / name)
        if told is None:
            return None
        appended = Appended.load(told["appended"])
        ends, name = appended.ends, appended.behind
        if ends is None:
            between.append(appended)
    ends = behind.tails.start if ends is None else ends
    for appended in reversed(between):
        if not appended.is_own:
            _, ends = behind.tails.append(ends, appended.specs)
    return ends

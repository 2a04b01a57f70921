"""A note beside the tables of a saved analysis: that they are as they were written, and what was
told of all pairs of experts then.

A model of 100,000 tensors has 50 million pairs: to read them takes seconds, which a page must not
take to say whether the experts are alike. While the files have the stamps that the note tells of,
nothing is read but what is shown; otherwise every row is looked at, as without a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.analysis.group_table import Key
from ders_core.analysis.origins import Starts
from ders_core.files.sealed import read_sealed, write_sealed
from ders_core.files.stamp import directory_version

NOTE = "written.json"


@dataclass(frozen=True)
class PairFigures:
    """What is told of all pairs. apart: the least and the largest 1 − cos of two experts of a
    group; None without any. starts: those of the model; None where one base is best."""

    apart: tuple[float, float] | None
    starts: Starts | None


class WrittenNote(BaseModel):
    """files: the version of the other files of the directory. spectra: (layer, projection, rows) of
    each group that has spectra, in the order of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: str
    spectra: tuple[tuple[int, str, int], ...]
    figures: PairFigures

    @property
    def counts(self) -> dict[Key, int]:
        """Rows of each group in the table of spectra."""
        return {(layer, projection): rows for layer, projection, rows in self.spectra}

    def is_of(self, directory: Path) -> bool:
        """Whether the files are those that were written. Ask after they were opened: then this
        holds for what is open."""
        try:
            return self.files == _version(directory)
        except OSError:  # another analysis is just taking its place
            return False


def write_note(directory: Path, spectra: Mapping[Key, int], figures: PairFigures) -> None:
    """Write the note, after all other files. spectra: rows of each group. Raises OSError."""
    rows = [[*key, count] for key, count in spectra.items()]
    value = {"files": _version(directory), "spectra": rows, "figures": asdict(figures)}
    write_sealed(directory / NOTE, value)


def read_note(directory: Path) -> WrittenNote | None:
    """The note; None if there is none, or it is not as it was written."""
    value = read_sealed(directory / NOTE)
    try:
        return None if value is None else WrittenNote.model_validate(value)
    except ValidationError:  # of another version
        return None


def withdraw_note(directory: Path) -> None:
    """Remove a note that proved wrong, so that the next reader looks at every row."""
    with suppress(OSError):
        (directory / NOTE).unlink()


def _version(directory: Path) -> str:
    return directory_version(directory, without=(NOTE,))

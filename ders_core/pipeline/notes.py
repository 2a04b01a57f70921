"""Notes of finished groups, sealed: one that was damaged or edited is none.

Notes are not synced, so a machine that goes down may leave anything in their place; and what they
say goes into the manifest as it is. A group without a whole note is encoded again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ders_core.files.sealed import read_sealed, write_sealed

HEADER = "header"


def note_of(file: Path) -> Path:
    """The note of a group that is, or would be, staged in this file."""
    return file.with_suffix(".json")


def staged_of(note: Path) -> Path:
    """The file in which the group of a note is staged, if it is."""
    return note.with_suffix(".safetensors")


def write_note(note: Path, value: dict[str, Any], *, staged: bool) -> None:
    """Write a note, whose group is written already; staged: as a file. Raises OSError."""
    write_sealed(note, value | {HEADER: _header_sha256(staged_of(note)) if staged else None})


def read_note(note: Path) -> dict[str, Any] | None:
    """What was written, but for the seal; None if there is no note, or the note or the header of
    the group's file is not as it was."""
    told = read_sealed(note)
    try:
        if told is None or told.pop(HEADER, "") not in (None, _header_sha256(staged_of(note))):
            return None
    except OSError:
        return None
    return told


def _header_sha256(file: Path) -> str | None:
    """Of a safetensors file: which tensors lie where; None if there is no file."""
    try:
        with open(file, "rb") as opened:
            length = opened.read(8)
            header = opened.read(int.from_bytes(length, "little"))
    except FileNotFoundError:
        return None
    except (OverflowError, MemoryError):  # a length that is none
        return ""
    return hashlib.sha256(length + header).hexdigest()

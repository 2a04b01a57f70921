"""Notes of finished groups, sealed: one that was damaged or edited is none.

Notes are not synced, so a machine that goes down may leave anything in their place; and what they
say goes into the manifest as it is. A group without a whole note is encoded again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.json_object import read_json
from ders_core.files.writer import json_text, write_json

SEAL, HEADER = "seal", "header"


def note_of(file: Path) -> Path:
    """The note of a group that is, or would be, staged in this file."""
    return file.with_suffix(".json")


def staged_of(note: Path) -> Path:
    """The file in which the group of a note is staged, if it is."""
    return note.with_suffix(".safetensors")


def write_note(note: Path, value: dict[str, Any]) -> None:
    """Write a note, whose group's file is written already. Raises OSError."""
    sealed = value | {HEADER: _header_sha256(staged_of(note))}
    write_json(note, sealed | {SEAL: _seal(sealed)})


def read_note(note: Path) -> dict[str, Any] | None:
    """What was written, but for the seal; None if there is no note, or the note or the header of
    the group's file is not as it was."""
    try:
        sealed = read_json(note)
        seal = sealed.pop(SEAL, None)
        if seal != _seal(sealed) or sealed.pop(HEADER, "") != _header_sha256(staged_of(note)):
            return None
    except (CheckpointError, OSError):
        return None
    return sealed


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(value).encode()).hexdigest()


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

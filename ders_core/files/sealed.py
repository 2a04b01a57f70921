"""JSON files that are sealed: one that was damaged or edited is none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.json_object import read_json
from ders_core.files.writer import json_text, write_json

SEAL = "seal"


def write_sealed(file: Path, value: dict[str, Any]) -> None:
    """Write an object and the SHA-256 of its text. Raises OSError."""
    write_json(file, value | {SEAL: _seal(value)})


def read_sealed(file: Path) -> dict[str, Any] | None:
    """What was written, but for the seal; None if there is no file, or it is not as it was."""
    try:
        value = read_json(file)
    except CheckpointError:
        return None
    return value if value.pop(SEAL, None) == _seal(value) else None


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(value).encode()).hexdigest()

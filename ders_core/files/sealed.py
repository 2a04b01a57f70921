"""JSON files that are sealed: one that was damaged or edited is none.

The seal is the last entry, so it is made and checked on the text as it is: to write the value as
JSON once more takes longer than all else that is done with a note.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ders_core.files.untrusted_json import JsonFault, parse_json
from ders_core.files.writer import json_text, write_text

SEAL = "seal"
BEFORE, BEHIND = f'\n  "{SEAL}": "', '"\n}\n'
"""The text around a seal."""


def write_sealed(file: Path, value: dict[str, Any]) -> None:
    """Write an object and the SHA-256 of its text. Raises OSError."""
    text = json_text(value)
    entries = text.removesuffix("\n}\n") + "," if value else "{"
    write_text(file, entries + BEFORE + _seal(text) + BEHIND)


def read_sealed(file: Path) -> dict[str, Any] | None:
    """What was written, but for the seal; None if there is no file, or it is not as it was."""
    try:
        content = file.read_bytes()
        value = parse_json(content)
    except (OSError, JsonFault):
        return None
    entries, _, seal = content.decode().rpartition(BEFORE)
    text = "{}\n" if entries == "{" else entries.removesuffix(",") + "\n}\n"
    if not isinstance(value, dict) or seal != _seal(text) + BEHIND:
        return None
    del value[SEAL]
    return value


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

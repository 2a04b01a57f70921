"""JSON files that are sealed: one that was damaged or edited is none.

The seal is the last entry, so it is made and checked on the text as it is: to write the value as
JSON once more takes longer than all else that is done with a note. What is sealed is one line: the
interpreter's library indents in Python, ten times as slowly.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ders_core.files.untrusted_json import JsonFault, parse_json
from ders_core.files.writer import write_text

SEAL = "seal"
END = "\n}\n"

BEFORE, BEHIND = f'\n  "{SEAL}": "', f'"{END}'
"""The text around a seal."""


def write_sealed(file: Path, value: dict[str, Any]) -> None:
    """Write an object and the SHA-256 of its text. Raises OSError."""
    text = json.dumps(value, ensure_ascii=False).removesuffix("}")
    entries = text + "," if value else text
    write_text(file, entries + BEFORE + _seal(entries) + BEHIND)


def read_sealed(file: Path) -> dict[str, Any] | None:
    """What was written, but for the seal; None if there is no file, or it is not as it was."""
    try:
        content = file.read_bytes()
        value = parse_json(content)
    except (OSError, JsonFault):
        return None
    entries, _, seal = content.decode().rpartition(BEFORE)
    if not isinstance(value, dict) or seal != _seal(entries) + BEHIND:
        return None
    del value[SEAL]
    return value


def _seal(entries: str) -> str:
    """Of the object that has these entries, and before the seal a comma."""
    text = "{}\n" if entries == "{" else entries.removesuffix(",") + END
    return hashlib.sha256(text.encode()).hexdigest()

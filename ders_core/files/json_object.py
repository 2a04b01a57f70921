"""JSON files that hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import is_remote, read_bytes
from ders_core.files.place_errors import reading
from ders_core.files.stand_ins import START_BYTES, stand_in


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it is missing, anything else, or cannot
    be read."""
    with reading(path):
        if not is_remote(path) and not path.is_file():
            raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
        content = read_bytes(path)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        known = stand_in(content[:START_BYTES]) if content[:1] not in (b"{", b"[") else None
        raise CheckpointError(f"{path} {known or f'is not valid JSON: {error}'}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value

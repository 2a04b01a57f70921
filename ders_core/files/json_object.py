"""JSON files that hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import is_remote, read_bytes


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it is missing or anything else."""
    if not is_remote(path) and not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value

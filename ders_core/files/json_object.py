"""JSON files that hold an object."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.address import file_size, is_remote, read_bytes
from ders_core.files.links import leads_out, refusal
from ders_core.files.place_errors import reading
from ders_core.files.stand_ins import START_BYTES, stand_in
from ders_core.files.untrusted_json import MOST_BYTES, JsonFault, parse_json


def read_json(path: Path, *, once: Container[str] = ()) -> dict[str, Any]:
    """The JSON object in a file.

    once: as of `parse_json`; every key, in files that only this program writes. Raises
    CheckpointError if the file is missing, cannot be read, or holds anything else or more than is
    read.
    """
    with reading(path):
        if not is_remote(path) and not path.is_file():
            raise CheckpointError(f"{path.parent} has no {path.name}; is it a model directory?")
        size = file_size(path)
        if size > MOST_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, and at most {MOST_BYTES} are read")
        content = read_bytes(path)
    try:
        value = parse_json(content, once=once)
    except JsonFault as error:
        if leads_out(path, path.parent):
            raise refusal(path) from error
        known = stand_in(content[:START_BYTES]) if content[:1] not in (b"{", b"[") else None
        raise CheckpointError(f"{path} {known or f'is not valid JSON: {error}'}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value

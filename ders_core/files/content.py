"""The content of a checkpoint as one hash of every byte, paid once for each version of its files.

`Store.identity` names a checkpoint by a sample of its bytes, which costs no full read and misses a
change elsewhere. Where a result depends on the content, the full hash decides.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ders_core.files.address import is_remote
from ders_core.files.aside import locked_aside
from ders_core.files.checksum import checksum
from ders_core.files.spec import TensorSpec
from ders_core.files.stamp import Stamp, check_unchanged
from ders_core.files.tensor import TensorReader
from ders_core.files.untrusted_json import parse_json

CACHE_VARIABLE = "DERS_CACHE"

Step = Callable[[int, str], None]
"""Called with the bytes of each tensor read, and a message."""


def content_hash(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[TensorReader, ...]],
    stamps: Mapping[str, Stamp],
    step: Step,
) -> str:
    """Hex SHA-256 of a config and of the name, dtype, shape and bytes of every tensor.

    tensors: weight file -> its tensors in the order of their bytes. stamps: of the files when they
    were opened. Checksums of a file's tensors are kept in the user's cache under the file's stamp.
    Raises CheckpointError if a file cannot be read, or was written meanwhile.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, infos in tensors.items():
        sums = _checksums(directory / name, infos, stamps[name], step)
        for info in infos:
            dtype, shape = info.spec.stored
            digest.update(f"{info.name}:{dtype}:{shape}:".encode())
            digest.update(bytes.fromhex(sums[info.name]))
    check_unchanged(directory, stamps)
    return digest.hexdigest()


def headers_hash(config: Mapping[str, Any], specs: Iterable[tuple[str, TensorSpec]]) -> str:
    """Hex SHA-256 of a config and of the tensors' names, dtypes and shapes, whatever they hold."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, spec in specs:
        dtype, shape = spec.stored
        digest.update(f"{name}:{dtype}:{shape}".encode())
    return digest.hexdigest()


def cache_directory() -> Path:
    """$DERS_CACHE, by default ~/.cache/ders-studio: what can be computed again. Raises RuntimeError
    if there is no home."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/ders-studio").expanduser()


def _checksums(
    file: Path, infos: tuple[TensorReader, ...], before: Stamp, step: Step
) -> Mapping[str, str]:
    """SHA-256 of each tensor of a file, by name; from the cache if the file has the same stamp."""
    place = None if is_remote(file) else _place(file)
    known = _known(place, before)
    if known is not None and all(info.name in known for info in infos):
        step(sum(info.nbytes for info in infos), f"{file.name} is as it was")
        return known
    settled = before.is_settled  # before it is read
    sums = {}
    for info in infos:
        sums[info.name] = checksum(info)
        step(info.nbytes, f"checksums of {file.name}")
    if place is not None and settled:
        _keep(place, before, sums)
    return sums


def _place(file: Path) -> Path | None:
    """Where a file's checksums are kept; None where there is no home."""
    with suppress(RuntimeError):
        name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:40]
        return cache_directory() / "checksums" / f"{name}.json"
    return None


def _known(place: Path | None, before: Stamp) -> Mapping[str, str] | None:
    if place is None:
        return None
    try:
        entry = parse_json(place.read_bytes())
        same = entry["stamp"] == [before.size, before.mark, before.entry_ns]
        sums = entry["tensors"]
        valid = isinstance(sums, dict) and all(
            len(bytes.fromhex(sha)) == 32 for sha in sums.values()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sums if same and valid else None


def _keep(place: Path, before: Stamp, sums: Mapping[str, str]) -> None:
    """Keep checksums; a cache that cannot be written costs time only."""
    stamped = [before.size, before.mark, before.entry_ns]
    entry = {"stamp": stamped, "tensors": dict(sums)}
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked_aside(place, sync=False) as aside:
            aside.write_text(json.dumps(entry), encoding="utf-8")

"""SHA-256 of tensors as they are on disk, and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ders_core.files.tensor import TensorReader


def checksum(tensor: TensorReader) -> str:
    """Hex SHA-256 of a tensor's bytes as they are on disk."""
    digest = hashlib.sha256()
    for chunk in tensor.raw():
        digest.update(chunk)
    return digest.hexdigest()


def file_checksum(file: Path) -> str:
    """Hex SHA-256 of a local file's bytes."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

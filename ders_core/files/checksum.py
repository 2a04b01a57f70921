"""SHA-256 of tensors as they lie on disk."""

from __future__ import annotations

import hashlib

from ders_core.files.header import TensorInfo


def checksum(info: TensorInfo) -> str:
    """Hex SHA-256 of a tensor's bytes on disk."""
    digest = hashlib.sha256()
    for chunk in info.raw():
        digest.update(chunk)
    return digest.hexdigest()

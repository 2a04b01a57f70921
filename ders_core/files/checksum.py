"""SHA-256 of tensors as they lie on disk."""

from __future__ import annotations

import hashlib

from ders_core.files.tensor import TensorReader


def checksum(tensor: TensorReader) -> str:
    """Hex SHA-256 of a tensor's bytes as they lie on disk."""
    digest = hashlib.sha256()
    for chunk in tensor.raw():
        digest.update(chunk)
    return digest.hexdigest()

"""Files written by hand, so that they can lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def forge(tmp_path: Path) -> Callable[..., Path]:
    """Write a safetensors file from a header (an object or raw bytes) and raw data."""

    def write(
        header: Any, data: bytes = b"", *, length: int | None = None, name: str = "forged"
    ) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        prefix = (len(text) if length is None else length).to_bytes(8, "little")
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(prefix + text + data)
        return path

    return write

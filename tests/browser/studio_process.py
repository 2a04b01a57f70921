"""A running studio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Studio:
    address: str
    workspace: Path

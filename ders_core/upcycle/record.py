"""What an upcycled checkpoint tells of how it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.history import HISTORY

RECORD = "ders_upcycle.json"
OWN_FILES = (RECORD, HISTORY)


def public_config(config: UpcycleConfig) -> dict[str, Any]:
    """The configuration as it travels: files by their names alone, not by paths of this machine."""
    told = config.model_dump(mode="json")
    data = told["data"]
    data["texts"] = [Path(text).name for text in data["texts"]]
    data["heldout"] = Path(data["heldout"]).name if data["heldout"] else None
    return told

"""What was measured before, so that a run that was cut short goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Remembered:
    """file: one JSON object a line, of a key and what was measured under it."""

    file: Path

    def measured(
        self, key: list[Any], measurement: Callable[..., dict[str, Any]], *arguments: Any
    ) -> dict[str, Any]:
        """The last measurement of this key; made now, from these arguments, if there is none."""
        found = self._found(key)
        if found is None:
            print(f"measuring {key}", file=sys.stderr, flush=True)
            found = measurement(*arguments)
            with open(self.file, "a") as lines:
                lines.write(json.dumps({"key": key, "measured": found}) + "\n")
        return found

    def _found(self, key: list[Any]) -> dict[str, Any] | None:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        records = [json.loads(line) for line in lines]
        found = [record["measured"] for record in records if record["key"] == key]
        return found[-1] if found else None

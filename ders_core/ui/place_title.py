"""The short name of a checkpoint on the pages."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.jobs.workspace import place_label
from ders_core.ui import session

_NUMBER = re.compile(r"[0-9]{5,9}")
"""The name of a job's directory."""


def place_title(place: str | Path) -> str:
    """As `place_label`; what a job of this workspace wrote is named after the job, 'two bits /
    packed', and not after the number of its directory."""
    if not is_address(place):
        path, runs = Path(place), session.workspace().runs
        if path.parent.parent == runs and _NUMBER.fullmatch(path.parent.name):
            with suppress(DersError):  # the job is deleted
                return f"{session.job_store().get(int(path.parent.name)).title} / {path.name}"
    return place_label(place)

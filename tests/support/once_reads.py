"""Which reads of tensors' bytes are of what nobody reads a second time."""

from __future__ import annotations

from typing import Any

import pytest

from ders_core.files import cold_reads
from ders_core.files.cold_reads import fill


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that gets, for each read of a tensor's bytes from now on, whether the thread that
    reads is within `reading_once`."""
    seen = list[bool]()

    def noted(*where: Any) -> None:
        seen.append(cold_reads._reader.reads_once)
        fill(*where)

    monkeypatch.setattr("ders_core.files.tensor.fill", noted)
    return seen

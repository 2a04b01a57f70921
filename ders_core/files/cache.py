"""What was opened before, as long as nothing has changed: headers of many thousand tensors take
seconds, and a process works on one group after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from ders_core.files.address import is_address

T = TypeVar("T")


def opened(how: Callable[[str], T], place: str, identity: str = "") -> T:
    """how(place), kept until a file of that directory changes. identity: of what lies elsewhere,
    where nobody looks whether it changed."""
    kept: T = _opened(how, place, _stamp(place) or identity)
    return kept


@lru_cache(maxsize=2)
def _opened(how: Callable[[str], T], place: str, stamp: object) -> T:
    return how(place)


def _stamp(place: str) -> tuple[tuple[str, int, int], ...]:
    """Changes when any file does; nothing for what lies elsewhere."""
    if is_address(place):
        return ()
    stats = ((file.name, file.stat()) for file in sorted(Path(place).expanduser().iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

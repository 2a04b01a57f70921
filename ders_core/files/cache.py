"""Cache of opened directories, keyed by the stamps of their files.

Headers of many thousand tensors take seconds to read, and a process works on one group after
another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from ders_core.files.address import is_address

T = TypeVar("T")


def opened(opener: Callable[[str], T], place: str, identity: str = "") -> T:
    """opener(place), kept until a file of that directory changes.

    identity: of the content at an address, whose files have no stamps here.
    """
    result: T = _opened(opener, place, _stamp(place) or identity)
    return result


@lru_cache(maxsize=2)
def _opened(opener: Callable[[str], T], place: str, stamp: object) -> T:
    return opener(place)


def _stamp(place: str) -> tuple[tuple[str, int, int], ...]:
    """Changes when any file does; empty for an address."""
    if is_address(place):
        return ()
    stats = ((file.name, file.stat()) for file in sorted(Path(place).expanduser().iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

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
from ders_core.files.stamp import directory_version

T = TypeVar("T")


def opened(opener: Callable[[str], T], place: str, identity: str = "") -> T:
    """opener(place), kept until a file of that directory changes.

    identity: of the content at an address, whose files are not looked at again.
    """
    version = identity if is_address(place) else directory_version(Path(place).expanduser())
    result: T = _opened(opener, place, version)
    return result


@lru_cache(maxsize=2)
def _opened(opener: Callable[[str], T], place: str, version: str) -> T:
    return opener(place)

"""Aligned memory for reading and writing past the system's page cache."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from ders_core.later import np

BLOCK = 4096
"""What positions, lengths and memory must be multiples of, on any disk."""

DESK_BYTES = 8 << 20
"""Read or written at a time."""

_free: list[np.ndarray] = []  # to be used again: fresh memory costs more than copying into it


@contextmanager
def desk() -> Iterator[np.ndarray]:
    """Yield uint8 `[DESK_BYTES]`, aligned; the next one to ask gets it again."""
    try:
        memory = _free.pop()
    except IndexError:  # not asked for beforehand: another thread may take the last one meanwhile
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # else forked processes share it
        memory = np.frombuffer(mmap.mmap(-1, DESK_BYTES, flags=flags), np.uint8)
    try:
        yield memory
    finally:
        _free.append(memory)

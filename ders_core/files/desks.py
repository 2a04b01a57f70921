"""Aligned memory for reading and writing past the system's page cache."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import finalize

from ders_core.later import np

BLOCK = 4096
"""What positions, lengths and memory must be multiples of, on any disk."""

DESK_BYTES = 8 << 20
"""Read or written at a time."""

KEPT_BYTES = 1 << 20
"""From here on memory is a whole desk: what is smaller may be held for long, in many pieces."""

FREE_DESKS = 16
"""So many are kept for others, at most."""

_free: list[np.ndarray] = []  # to be used again: fresh memory costs more than copying into it


@contextmanager
def desk() -> Iterator[np.ndarray]:
    """Yield uint8 `[DESK_BYTES]`, aligned; the next one to ask gets it again. Raises
    MemoryError."""
    memory = _taken()
    try:
        yield memory
    finally:
        _give_back(_free, memory)


def chunk(nbytes: int) -> np.ndarray:
    """uint8 `[nbytes]`, for what is handed on; it is a desk's once nothing shares it any more.
    Raises MemoryError."""
    if not KEPT_BYTES <= nbytes <= DESK_BYTES:
        return np.empty(nbytes, np.uint8)
    memory = _taken()
    part = memory[:nbytes]
    finalize(part, _give_back, _free, memory).atexit = False
    # of a memoryview: views of an array that is a view itself do not keep that one, but its memory
    return np.frombuffer(memoryview(part), np.uint8)  # type: ignore[arg-type]


def _taken() -> np.ndarray:
    """uint8 `[DESK_BYTES]`, aligned: one that was used before, or a new one. Raises
    MemoryError."""
    try:
        return _free.pop()
    except IndexError:  # not asked for beforehand: another thread may take the last one meanwhile
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # else forked processes share it
        try:
            mapped = mmap.mmap(-1, DESK_BYTES, flags=flags)
        except OSError as error:
            raise MemoryError(f"the system has no {DESK_BYTES} bytes of memory left") from error
        with suppress(OSError, AttributeError):  # a system without large pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(mapped, np.uint8)


def _give_back(free: list[np.ndarray], memory: np.ndarray) -> None:
    if len(free) < FREE_DESKS:
        free.append(memory)

"""Large writes that go past the system's page cache, where the system and the disk can do that.

To copy bytes into the cache takes a processor several times as long as to hand them to the disk,
most of all where the cache needs memory that nothing has used yet; and the cache holds what is read
next, which a large output would push out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ders_core.files.desks import BLOCK, desk
from ders_core.later import np

LARGE_BYTES = 32 << 20
"""From here on. What is small may be read again soon."""


class Writer:
    """Writes bytes one after another into a file; made by `written_from`."""

    def __init__(self, file: int, direct: int | None, position: int, memory: np.ndarray) -> None:
        """file, direct: handles of the same file, the second past the cache. position: of the first
        byte. memory: uint8 `[n]`, aligned, in which one write is gathered."""
        self._file, self._direct, self._position = file, direct, position
        self._memory, self._filled = memory, 0

    def write(self, chunk: bytes | memoryview) -> int:
        """Write the next bytes; returns how many. They may be overwritten afterwards."""
        rest = memoryview(chunk).cast("B")
        if self._direct is None:
            self._position = _write(self._file, rest, self._position)
            return len(rest)
        count = len(rest)
        if not self._filled and (apart := -self._position % BLOCK):
            self._position = _write(self._file, rest[:apart], self._position)
            rest = rest[apart:]
        while rest:
            taken = min(len(rest), len(self._memory) - self._filled)
            gathered = self._memory[self._filled : self._filled + taken]
            gathered[:] = np.frombuffer(rest[:taken], np.uint8)
            self._filled, rest = self._filled + taken, rest[taken:]
            if self._filled == len(self._memory):
                self.flush()
        return count

    def flush(self) -> None:
        """Hand everything to the system."""
        ready, self._filled = memoryview(self._memory[: self._filled]), 0  # type: ignore[arg-type]
        whole = len(ready) // BLOCK * BLOCK
        if self._direct is not None and whole:
            # some file systems refuse only here; and a full disk may take a part of a block
            with suppress(OSError):
                count = os.pwrite(self._direct, ready[:whole], self._position)
                self._position, ready = self._position + count, ready[count:]
        self._position = _write(self._file, ready, self._position)


@contextmanager
def written_from(
    path: Path, position: int, size: int, *, past_cache: bool = True
) -> Iterator[Writer]:
    """Yield what writes `size` bytes, or fewer, into a file that exists, from a position on; not
    synced. The bytes around them stay as they are. past_cache: whether it may. Raises OSError,
    MemoryError."""
    with ExitStack() as stack:
        file = os.open(path, os.O_WRONLY)
        stack.callback(os.close, file)
        direct, memory = None, np.empty(0, np.uint8)
        if past_cache and size >= LARGE_BYTES and (direct := _opened_past_cache(path)) is not None:
            stack.callback(os.close, direct)
            memory = stack.enter_context(desk())
        writer = Writer(file, direct, position, memory)
        yield writer
        writer.flush()


def _opened_past_cache(path: Path) -> int | None:
    """A handle, None where there are none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _write(file: int, rest: memoryview, position: int) -> int:
    """Write all of it through the cache; returns the position after it."""
    while rest:
        count = os.pwrite(file, rest, position)
        position, rest = position + count, rest[count:]
    return position

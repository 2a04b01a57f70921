"""Large reads of files that the system's page cache does not hold, past that cache.

To read through the cache takes a processor ten times as long, and most disks wait meanwhile: Linux
asks them for 128 KiB at a time. What the cache holds comes from it. A disk that turns out so slow
that a second reading of the same bytes would be waited for is read through the cache.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from ders_core.files.desks import BLOCK, desk
from ders_core.later import np

P = ParamSpec("P")
R = TypeVar("R")

LARGE_BYTES = 512 << 10
"""From here on: below it, disks wait between reads past the cache, and are read ahead within it."""

PART_BYTES = 1 << 20
"""What the cache holds only in part is read past it, so many bytes at a time."""

SLOW_BYTES = 1e9
"""A disk counts as slow below so many bytes a second, times the processor's cores. Compression
works on a third of that, reads large groups twice, and waits for most of it."""

MEASURED_BYTES, MEASURED_TIMES = 32 << 20, 8
"""A disk is judged by the quickest of so many stretches of so many bytes: reads also wait for a
processor that has other work."""


@dataclass
class _Pace:
    """Of reads past the cache from one disk. nbytes, seconds: of the stretch that goes on.
    stretches: finished ones. quickest: bytes in a second of the quickest of these."""

    nbytes: int = 0
    seconds: float = 0.0
    stretches: int = 0
    quickest: float = 0.0

    def add(self, nbytes: int, seconds: float) -> None:
        self.nbytes, self.seconds = self.nbytes + nbytes, self.seconds + seconds
        if self.nbytes >= MEASURED_BYTES:
            self.quickest = max(self.quickest, self.nbytes / max(self.seconds, 1e-9))
            self.stretches += 1
            self.nbytes, self.seconds = 0, 0.0

    @property
    def is_slow(self) -> bool:
        slow = SLOW_BYTES * len(os.sched_getaffinity(0))
        return self.stretches >= MEASURED_TIMES and self.quickest < slow


_lock = threading.Lock()
_paces: defaultdict[int, _Pace] = defaultdict(_Pace)


class _Reader(threading.local):
    """Whether this thread reads what nobody reads a second time; or what is read again soon."""

    reads_once = reads_again = False


_reader = _Reader()


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it, this thread reads what is not read again: past the cache, however slow a disk
    is."""
    before, _reader.reads_once = _reader.reads_once, True
    try:
        yield
    finally:
        _reader.reads_once = before


@contextmanager
def reading_again() -> Iterator[None]:
    """Within it, this thread reads what is read a second time soon: through the cache, however
    quick a disk is."""
    before, _reader.reads_again = _reader.reads_again, True
    try:
        yield
    finally:
        _reader.reads_again = before


def as_here(function: Callable[P, R]) -> Callable[P, R]:
    """The function, to be called by other threads: within `reading_once` if this thread is now."""
    if not _reader.reads_once:
        return function

    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        with reading_once():
            return function(*args, **kwargs)

    return read


def goes_past_cache(path: Path, nbytes: int) -> bool:
    """Whether a read of so many bytes goes past the cache, if that does not hold them. Raises
    OSError if there is no such file."""
    if nbytes < LARGE_BYTES or not hasattr(os, "O_DIRECT") or _reader.reads_again:
        return False
    disk = os.stat(path).st_dev
    with _lock:
        return _reader.reads_once or not _paces[disk].is_slow


def fill(path: Path, begin: int, memory: np.ndarray) -> None:
    """Read bytes of a file, from the position `begin` on, until the memory, uint8 `[n]`, is full.
    Raises OSError, and EOFError if the file ends before that."""
    with open(path, "rb", buffering=0) as file:
        if not goes_past_cache(path, len(memory)):
            _read(file, begin, memory)
            return
        for part, is_held in _parts(file, begin, len(memory)):
            rest = memory[part]
            if not is_held:
                rest = rest[_read_past_cache(path, begin + part.start, rest) :]
            _read(file, begin + part.stop - len(rest), rest)


def _parts(file: BinaryIO, begin: int, count: int) -> Iterator[tuple[slice, bool]]:
    """The bytes from `begin` on, in slices that the cache holds wholly, and slices that it does
    not."""
    start = begin - begin % mmap.ALLOCATIONGRANULARITY
    held = _held(file, start, begin + count - start)
    step = PART_BYTES // mmap.PAGESIZE
    parts = [bool(held[page : page + step].all()) for page in range(0, len(held), step)]
    number = 0
    for is_held, same in groupby(parts):
        first, number = number, number + len(list(same))
        end = start + number * PART_BYTES - begin
        yield slice(max(start + first * PART_BYTES - begin, 0), min(end, count)), is_held


def _held(file: BinaryIO, begin: int, count: int) -> np.ndarray:
    """Whether the cache holds each page of a part of a file, bool `[pages]`; that it does where
    nothing is known of it. begin: a multiple of `mmap.ALLOCATIONGRANULARITY`."""
    pages = np.ones(-(-count // mmap.PAGESIZE), np.uint8)
    with (
        suppress(OSError, ValueError, AttributeError),  # ValueError: the file is shorter
        mmap.mmap(file.fileno(), count, offset=begin, access=mmap.ACCESS_READ) as mapped,
    ):
        view = np.frombuffer(mapped, np.uint8)
        place, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(count)
        del view  # what is looked at is not closed
        if _mincore()(place, size, ctypes.c_void_p(pages.ctypes.data)):
            pages[:] = 1
    return (pages & 1).astype(bool)


@cache
def _mincore() -> Callable[..., int]:
    """The system's function; found once, which takes as long as a small read. Raises
    AttributeError where there is none."""
    found: Callable[..., int] = ctypes.CDLL(None).mincore
    return found


def _read_past_cache(path: Path, begin: int, memory: np.ndarray) -> int:
    """How many bytes, from the position `begin` on, could be read: fewer where the file system
    refuses, or the file ends."""
    done = 0
    # what is the matter is told where it is read again
    with suppress(OSError, MemoryError), desk() as aligned:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            while done < len(memory):
                apart = (begin + done) % BLOCK
                whole = -(-(apart + len(memory) - done) // BLOCK) * BLOCK
                count = _timed(file, aligned[:whole], begin + done - apart) - apart
                if count <= 0:
                    break
                count = min(count, len(memory) - done)
                memory[done : done + count] = aligned[apart : apart + count]
                done += count
        finally:
            os.close(file)
    return done


def _timed(file: int, memory: np.ndarray, position: int) -> int:
    """How many bytes were read; the pace of the disk takes them into account."""
    begun = time.perf_counter()
    count = os.preadv(file, [memoryview(memory)], position)  # type: ignore[arg-type]
    seconds, disk = time.perf_counter() - begun, os.fstat(file).st_dev
    with _lock:
        _paces[disk].add(count, seconds)
    return count


def _read(file: BinaryIO, begin: int, memory: np.ndarray) -> None:
    """Read through the cache until the memory is full (one read gives at most 2 GiB on Linux)."""
    file.seek(begin)
    view, position = memoryview(memory), 0  # type: ignore[arg-type]
    while position < len(view):
        count = file.readinto(view[position : position + (1 << 30)])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the file ends too early")
        position += count

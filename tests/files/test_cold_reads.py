"""What is read past the page cache is what the file holds, whatever the system makes of it."""

from __future__ import annotations

import errno
import hashlib
import itertools
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ders_core.files import cold_reads, desks, tensor
from ders_core.files.checksum import checksum
from ders_core.files.cold_reads import as_here, fill, goes_past_cache, reading_once
from ders_core.files.desks import BLOCK
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no such reads here")

PAGE = mmap.PAGESIZE
SIZE = 10 * PAGE + 777
READS: dict[str, Any] = {
    "gives all": lambda handle, places, begin: os.preadv(handle, places, begin),
    "gives a part": lambda handle, places, begin: os.preadv(handle, [places[0][:BLOCK]], begin),
    "refuses": lambda handle, places, begin: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")),
    "is damaged": lambda handle, places, begin: (_ for _ in ()).throw(OSError(errno.EIO, "no")),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All reads are large, and fill many desks."""
    monkeypatch.setattr(cold_reads, "LARGE_BYTES", 1)
    monkeypatch.setattr(cold_reads, "PART_BYTES", 2 * PAGE)
    monkeypatch.setattr(cold_reads, "_paces", defaultdict(cold_reads._Pace))
    monkeypatch.setattr(desks, "DESK_BYTES", 3 * BLOCK)
    monkeypatch.setattr(desks, "_free", [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.fixture(params=READS)
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A system whose reads past the cache do as told; the positions of these."""
    positions, reading, answer = list[int](), os.preadv, READS[request.param]

    def read(handle: int, places: list[memoryview], begin: int) -> int:
        assert begin % BLOCK == len(places[0]) % BLOCK == 0
        assert np.frombuffer(places[0], np.uint8).ctypes.data % BLOCK == 0
        positions.append(begin)
        with monkeypatch.context() as plain:
            plain.setattr(os, "preadv", reading)
            count: int = answer(handle, places, begin)
        return count

    opening = os.open
    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "open", lambda path, flags: opening(path, flags & ~os.O_DIRECT))
    return positions


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    begin=st.integers(0, SIZE),
    count=st.integers(1, SIZE),
    held=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_bytes_are_those_of_the_file(
    file: Path, direct: list[int], begin: int, count: int, held: list[bool]
) -> None:
    direct.clear()
    count = min(count, SIZE - begin)
    memory = np.zeros(count, np.uint8)

    def known(_: object, first: int, length: int) -> np.ndarray:
        assert first % mmap.ALLOCATIONGRANULARITY == 0 <= begin - first < PAGE
        return np.array(held[: -(-length // PAGE)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_reads, "_held", known)
        fill(file, begin, memory)
    assert memory.tobytes() == file.read_bytes()[begin : begin + count]
    pages = -(-(begin % PAGE + count) // PAGE)
    cold = {page // 2 for page in range(pages) if count and not held[page]}
    started = {(position - begin // PAGE * PAGE) // (2 * PAGE) for position in direct}
    assert started <= cold  # what the cache holds comes from it
    assert bool(direct) == bool(cold)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_file_that_ends_too_early_is_told(
    file: Path, direct: list[int], is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = np.full(99, is_held)
    monkeypatch.setattr(cold_reads, "_held", lambda _, first, count: pages[: -(-count // PAGE)])
    for begin, count in ((0, SIZE + 1), (SIZE - 5, 6), (SIZE + 3 * PAGE, 1)):
        with pytest.raises(EOFError):
            fill(file, begin, np.zeros(count, np.uint8))


def test_without_memory_to_read_into_the_cache_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken() -> np.ndarray:
        asked.append(True)
        raise MemoryError

    asked, memory = list[bool](), np.zeros(SIZE, np.uint8)
    monkeypatch.setattr(cold_reads, "_held", lambda _, first, count: np.full(-(-count // PAGE), 0))
    monkeypatch.setattr(desks, "_taken", taken)
    fill(file, 0, memory)
    assert asked
    assert memory.tobytes() == file.read_bytes()


def dropped(file: Path) -> None:
    """Have the system drop the file from its page cache."""
    handle = os.open(file, os.O_RDONLY)
    os.fdatasync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def held_pages(file: Path) -> list[int]:
    with open(file, "rb") as opened:
        return np.flatnonzero(cold_reads._held(opened, 0, SIZE)).tolist()


def test_what_is_cold_is_read_past_the_cache_and_what_is_held_from_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held_pages(file) == list(range(11))
    dropped(file)
    if held_pages(file):
        pytest.skip("this file system keeps its files in memory")
    memory = np.zeros(SIZE, np.uint8)
    fill(file, 0, memory)
    assert memory.tobytes() == file.read_bytes()
    dropped(file)
    fill(file, 0, memory)
    assert not held_pages(file)
    with open(file, "rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        opened.seek(5 * PAGE)
        opened.read(1)
    held = held_pages(file)
    assert 5 in held
    assert len(held) < 11
    file.read_bytes()
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("read past the cache"))
    fill(file, 0, memory)
    assert memory.tobytes() == file.read_bytes()


def test_a_file_system_without_such_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = os.open

    def refused(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return opening(path, flags)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(cold_reads, "_held", lambda _, first, count: np.zeros(11, bool))
    memory = np.zeros(SIZE, np.uint8)
    fill(file, 0, memory)
    assert memory.tobytes() == file.read_bytes()


def test_a_slow_disk_is_read_through_the_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless one of several stretches was quick."""
    monkeypatch.setattr(cold_reads, "MEASURED_BYTES", SIZE)
    monkeypatch.setattr(cold_reads, "MEASURED_TIMES", 3)
    monkeypatch.setattr(cold_reads, "_held", lambda _, first, count: np.zeros(11, bool))
    clock: Iterator[float] = itertools.count()  # each read takes a second
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    memory = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        assert goes_past_cache(file, SIZE)
        fill(file, 0, memory)
    assert not goes_past_cache(file, SIZE)
    with reading_once(), ThreadPoolExecutor(1) as other:  # what is not read again does so
        assert goes_past_cache(file, SIZE)
        assert not other.submit(goes_past_cache, file, SIZE).result()
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: pytest.fail("read past the cache"))
        memory[:] = 0
        fill(file, 0, memory)
    assert memory.tobytes() == file.read_bytes()
    cold_reads._paces.clear()
    clock = itertools.chain(range(8), [8.0] * 8, itertools.count(9))  # the second one takes no time
    for _ in range(4):
        fill(file, 0, memory)
        assert goes_past_cache(file, SIZE)


def test_what_is_copied_or_checked_follows_the_same_rule(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes of a tensor, in chunks: past the cache where the disk is quick, or once."""
    monkeypatch.setattr(tensor, "CHUNK_BYTES", 3 * PAGE + 5)
    stored = FileTensor("x", TensorSpec(Dtype.U8, (SIZE - 100,)), file, 99, SIZE - 1)
    wanted, checked = file.read_bytes()[99:-1], hashlib.sha256(file.read_bytes()[99:-1]).hexdigest()
    monkeypatch.setattr(cold_reads, "_held", lambda _, first, count: np.zeros(99, bool))
    positions, read = list[int](), os.preadv

    def noted(handle: int, places: list[memoryview], begin: int) -> int:
        positions.append(begin)
        return read(handle, places, begin)

    monkeypatch.setattr(os, "preadv", noted)
    chunks = list(stored.raw())
    assert b"".join(chunks) == wanted
    assert len(chunks) == 4
    assert positions == [0, 3 * PAGE, 6 * PAGE, 9 * PAGE]  # one read for each chunk
    monkeypatch.setattr(cold_reads._Pace, "is_slow", True)
    positions.clear()
    assert checksum(stored) == checked
    assert not positions
    with reading_once():
        assert checksum(stored) == checked
    assert positions


def test_other_threads_read_as_the_one_that_hands_them_work() -> None:
    def seen() -> bool:
        return cold_reads._reader.reads_once

    with ThreadPoolExecutor(1) as other:
        with reading_once():
            assert other.submit(as_here(seen)).result()
            assert not other.submit(seen).result()
        assert not other.submit(as_here(seen)).result()
    assert not seen()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_desk_of_its_own() -> None:
    with desks.desk() as memory:
        memory[:] = 1
    child = os.fork()
    if child == 0:
        with desks.desk() as memory:
            memory[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    with desks.desk() as memory:
        assert (memory == 1).all()

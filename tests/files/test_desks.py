"""Memory of what was read is used again once nobody holds it, and not before."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import numpy as np
import pytest

from ders_core.files import desks
from ders_core.files.desks import DESK_BYTES, FREE_DESKS, KEPT_BYTES, chunk, desk
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor


@pytest.fixture(autouse=True)
def none_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "_free", [])


def place(memory: np.ndarray | memoryview | bytes) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def test_a_chunk_that_nobody_holds_is_the_next_one() -> None:
    first = chunk(DESK_BYTES)
    where = place(first)
    del first
    second = chunk(KEPT_BYTES)
    assert (len(second), place(second)) == (KEPT_BYTES, where)
    del second
    with desk() as memory:
        assert place(memory) == where


def test_a_chunk_that_is_held_is_nobody_elses() -> None:
    first = chunk(KEPT_BYTES)
    first[:] = 1
    part = memoryview(first)[5:9]  # type: ignore[arg-type]
    where = place(first)
    del first
    second = chunk(KEPT_BYTES)
    second[:] = 2
    assert place(second) != where
    assert bytes(part) == bytes([1] * 4)


def test_a_slice_of_a_chunk_keeps_it() -> None:
    """Also a view of one."""
    first = chunk(KEPT_BYTES)
    first[:] = 1
    where, part = place(first), first[5:13].view(np.int32)[1:]
    del first
    assert not desks._free
    second = chunk(KEPT_BYTES)
    second[:] = 2
    assert place(second) != where
    assert part.tolist() == [0x01010101]
    del part
    assert len(desks._free) == 1


def test_a_system_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped(*args: object, **kwargs: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", mapped)
    with pytest.raises(MemoryError, match=str(DESK_BYTES)):
        chunk(DESK_BYTES)
    with pytest.raises(MemoryError), desk():
        pass


def test_few_are_kept() -> None:
    chunks = [chunk(KEPT_BYTES) for _ in range(FREE_DESKS + 3)]
    assert len({*map(place, chunks)}) == len(chunks)
    chunks.clear()
    assert len(desks._free) == FREE_DESKS


def test_what_is_small_takes_no_desk() -> None:
    small = chunk(KEPT_BYTES - 1)
    assert len(small) == KEPT_BYTES - 1
    del small
    assert not desks._free


def test_a_tensor_is_read_in_few_desks(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(5 * DESK_BYTES + 3)
    file = tmp_path / "weights"
    file.write_bytes(data)
    tensor = FileTensor("a", TensorSpec(Dtype.U8, (len(data),)), file, 0, len(data))
    places, whole = set(), bytearray()
    for piece in tensor.raw():
        whole += piece
        if len(piece) >= KEPT_BYTES:
            places.add(place(piece))
        del piece
    assert bytes(whole) == data
    assert len(places) == len(desks._free) <= 2

"""What is written past the page cache is what was given, whatever the system makes of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ders_core.files import desks, past_cache
from ders_core.files.desks import BLOCK
from ders_core.files.past_cache import written_from
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import tensor_bytes, write_file
from ders_core.later import torch

pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no such writes here")

DESK = 3 * BLOCK
RESULTS: dict[str, Any] = {
    "takes all": lambda handle, data, position: os.pwrite(handle, data, position),
    "takes a part": lambda handle, data, position: os.pwrite(handle, data[:700], position),
    "refuses": lambda handle, data, position: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All writes are large, and fill many desks."""
    monkeypatch.setattr(past_cache, "LARGE_BYTES", 1)
    monkeypatch.setattr(desks, "DESK_BYTES", DESK)
    monkeypatch.setattr(desks, "_free", [])


@pytest.fixture(params=RESULTS)
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A system whose writes past the cache do as told; the lengths of these."""
    lengths, handles = list[int](), set[int]()
    opening, writing, answer = os.open, os.pwrite, RESULTS[request.param]

    def opened(path: Path, flags: int, *rest: int) -> int:
        handle = opening(path, flags & ~os.O_DIRECT, *rest)
        (handles.add if flags & os.O_DIRECT else handles.discard)(handle)
        return handle

    def write(handle: int, data: memoryview, position: int) -> int:
        if handle not in handles:
            return writing(handle, data, position)
        assert position % BLOCK == len(data) % BLOCK == 0
        lengths.append(len(data))
        with monkeypatch.context() as plain:
            plain.setattr(os, "pwrite", writing)
            count: int = answer(handle, data, position)
        return count

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", write)
    yield lengths
    monkeypatch.undo()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    position=st.integers(0, 2 * BLOCK),
    sizes=st.lists(st.integers(0, 3 * DESK) | st.just(BLOCK), max_size=4),
)
def test_every_byte_is_at_its_place(
    tmp_path: Path, direct: list[int], position: int, sizes: list[int]
) -> None:
    path, chunks = tmp_path / "a", [os.urandom(size) for size in sizes]
    around, data = os.urandom(position + sum(sizes) + 5000), b"".join(chunks)
    path.write_bytes(around)
    direct.clear()
    with written_from(path, position, sum(sizes)) as file:
        for chunk in chunks:
            memory = bytearray(chunk)
            assert file.write(memoryview(memory)) == len(chunk)
            memory[:] = bytes(len(chunk))  # as a buffer that is used again
    wanted = around[:position] + data + around[position + len(data) :]
    assert path.read_bytes() == wanted
    assert bool(direct) == (len(data) >= BLOCK + -position % BLOCK)


def test_the_system_of_this_machine(tmp_path: Path) -> None:
    """Nothing in place of it, whatever it can do."""
    values = torch.arange(40_000, dtype=torch.int32)
    specs = {name: TensorSpec.like(values) for name in "ab"}
    write_file(tmp_path / "past", specs, lambda name: tensor_bytes(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past_cache, "LARGE_BYTES", 1 << 60)
        write_file(tmp_path / "through", specs, lambda name: tensor_bytes(values))
    assert (tmp_path / "past").read_bytes() == (tmp_path / "through").read_bytes()


def test_a_system_that_opens_nothing_past_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = os.open

    def opened(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opening(path, flags, *rest)

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "open", opened)
    with written_from(tmp_path / "a", 0, 3 * DESK) as file:
        file.write(bytes(range(256)) * 100)
    assert (tmp_path / "a").read_bytes() == bytes(range(256)) * 100


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview, position: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(OSError, match="No space left"),
        written_from(tmp_path / "a", 0, DESK) as file,
    ):
        file.write(bytes(DESK))


def test_what_is_read_again_soon_stays_in_the_cache(tmp_path: Path, direct: list[int]) -> None:
    values = torch.arange(40_000, dtype=torch.int32)
    specs = {"a": TensorSpec.like(values)}
    write_file(tmp_path / "staged", specs, lambda name: tensor_bytes(values), past_cache=False)
    assert not direct
    write_file(tmp_path / "output", specs, lambda name: tensor_bytes(values))
    assert direct
    assert (tmp_path / "staged").read_bytes() == (tmp_path / "output").read_bytes()

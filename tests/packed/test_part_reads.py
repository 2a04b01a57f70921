"""Checksums of rows that were read are those of the file, whatever order they were read in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.counted_reads import read_sizes

from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
from ders_core.packed.part_reads import HashedReads

ROWS, WIDTH, BEFORE = 7, 1000, 96


@pytest.fixture
def stored(tmp_path: Path) -> FileTensor:
    data = np.random.default_rng(0).bytes(BEFORE + 2 * ROWS * WIDTH + 50)
    (tmp_path / "weights").write_bytes(data)
    end = BEFORE + 2 * ROWS * WIDTH
    spec = TensorSpec(Dtype.I16, (ROWS, WIDTH))
    return FileTensor("a", spec, tmp_path / "weights", BEFORE, end)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a file asks for."""
    return read_sizes(monkeypatch)


def content(stored: FileTensor) -> bytes:
    return stored.file.read_bytes()[stored.begin : stored.end]


def values(stored: FileTensor) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content(stored), np.int16).reshape(stored.shape).copy())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted), max_size=9)
)
def test_in_any_order(stored: FileTensor, spans: list[list[int]]) -> None:
    reads, whole = HashedReads(), values(stored)
    for first, last in spans:
        assert torch.equal(reads.rows(stored, slice(first, last)), whole[first:last])
    assert reads.checksum(stored) == hashlib.sha256(content(stored)).hexdigest()
    assert reads.checksum(stored) == hashlib.sha256(content(stored)).hexdigest()


def test_in_order_each_byte_is_asked_for_once(stored: FileTensor, asked: list[int]) -> None:
    reads = HashedReads()
    for row in range(ROWS):
        assert not [*reads.finished()]
        reads.rows(stored, slice(row, row + 1))
    assert [*reads.finished()] == [stored]
    assert not [*reads.finished()]
    assert reads.checksum(stored) == hashlib.sha256(content(stored)).hexdigest()
    assert sum(asked) == stored.nbytes


def test_by_threads(stored: FileTensor, asked: list[int]) -> None:
    """Rows that are asked for in order, by whichever thread, are hashed in order."""
    whole = values(stored)
    for _ in range(20):
        asked.clear()
        reads = HashedReads()
        with ThreadPoolExecutor(4) as pool:
            read = [*pool.map(lambda row: reads.rows(stored, slice(row, row + 1)), range(ROWS))]  # noqa: B023
        assert torch.equal(torch.cat(read), whole)
        assert stored.nbytes <= sum(asked) <= 2 * stored.nbytes
        assert reads.checksum(stored) == hashlib.sha256(content(stored)).hexdigest()
        assert [*reads.finished()] == [stored]


@pytest.mark.parametrize("place", [0, WIDTH, 2 * ROWS * WIDTH - 1])
@pytest.mark.parametrize(
    "read",
    [
        lambda reads, stored: [reads.rows(stored, slice(n, n + 1)) for n in range(ROWS)],
        lambda reads, stored: [reads.rows(stored, slice(n, n + 1)) for n in range(ROWS)[::-1]],
        lambda reads, stored: [],
    ],
    ids=["in order", "backwards", "not at all"],
)
def test_a_changed_byte_changes_it(
    stored: FileTensor, place: int, read: Callable[[HashedReads, FileTensor], object]
) -> None:
    intact = hashlib.sha256(content(stored)).hexdigest()
    data = bytearray(stored.file.read_bytes())
    data[BEFORE + place] ^= 1
    stored.file.write_bytes(data)
    reads = HashedReads()
    read(reads, stored)
    assert reads.checksum(stored) != intact


def test_what_was_copied_has_the_checksum_of_the_copy(stored: FileTensor, asked: list[int]) -> None:
    reads = HashedReads()
    reads.copied(stored, "5a")
    assert [*reads.finished()] == [stored]
    assert reads.checksum(stored) == "5a"
    assert not asked

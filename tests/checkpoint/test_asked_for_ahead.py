"""What the system is asked to read of a group before it is needed."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from support.stored_groups import group_of

from ders_core.files import cold_reads
from ders_core.files.cold_reads import LARGE_BYTES


def test_all_of_a_group_is_asked_for_ahead_in_pieces_that_the_system_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.zeros((2, 300, 200), dtype=np.float32)
    group = group_of(tmp_path / "a.safetensors", weights)
    (tensor,), asked = group.matrices[0].info.sources(), list[tuple[int, int]]()
    is_over = threading.Event()

    def advise(handle: int, begin: int, count: int, advice: int) -> None:
        asked.append((begin, begin + count))
        if begin + count == tensor.end:
            is_over.set()

    monkeypatch.setattr("ders_core.checkpoint.stacks.os.posix_fadvise", advise)
    group.read_ahead()
    assert is_over.wait(60)
    assert [begin for begin, _ in asked] == [tensor.begin, *(end for _, end in asked[:-1])]
    assert asked[-1][1] == tensor.end
    assert max(end - begin for begin, end in asked) <= 128 << 10  # what Linux reads for one call


def test_what_is_read_past_the_cache_is_not_asked_for_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: begun.append(thread))
    monkeypatch.setattr(cold_reads, "_paces", defaultdict(cold_reads._Pace))  # no disk is slow
    rows = LARGE_BYTES // 64
    group_of(tmp_path / "a.safetensors", np.zeros((2, rows, 16), np.float32)).read_ahead()
    assert not begun
    group_of(tmp_path / "b.safetensors", np.zeros((2, rows - 1, 16), np.float32)).read_ahead()
    assert len(begun) == 1
    group_of(tmp_path / "a.safetensors", np.zeros((2, rows, 16), np.float32)).read_ahead(
        at_once=2 * LARGE_BYTES - 1
    )
    assert len(begun) == 2
    lying = np.zeros((2, rows, 16), np.float32)
    group_of(tmp_path / "c.safetensors", lying, "expert in out").read_ahead()
    assert len(begun) == 3


def test_nothing_is_read_ahead_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(tmp_path / "a.safetensors", np.zeros((2, 5, 4), np.float32))
    begun: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: begun.append(thread))
    for free in (2 * group.nbytes - 1, 2 * group.nbytes):
        monkeypatch.setattr("ders_core.checkpoint.stacks.free_memory", lambda device, n=free: n)
        assert not begun
        group.read_ahead()
    assert len(begun) == 1

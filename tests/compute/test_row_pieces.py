"""Rows that are shared out to threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.compute.row_pieces import LEAST, by_row_pieces
from ders_core.compute.threads import IdleThreads, helped_by, threads_of_torch


@settings(max_examples=40)
@given(
    threads=st.integers(1, 4),
    many=st.integers(0, 40),
    multiple=st.sampled_from([1, 4]),
    rest=st.integers(0, 3),
    values=st.sampled_from([0, LEAST, 2 * LEAST, 9 * LEAST]),
)
def test_each_row_is_in_one_piece(
    threads: int, many: int, multiple: int, rest: int, values: int
) -> None:
    rows = many * multiple + rest
    seen: list[tuple[int, int]] = []
    lock = threading.Lock()

    def work(first: int, last: int) -> None:
        with lock:
            seen.append((first, last))

    with threads_of_torch(threads):
        by_row_pieces(work, rows, values, multiple=multiple)
    seen.sort()
    assert [row for first, last in seen for row in range(first, last)] == [*range(rows)]
    assert all(first % multiple == 0 for first, _ in seen)
    assert len(seen) <= max(threads, 1)
    if values < 2 * LEAST:
        assert len(seen) == 1


def test_in_one_of_several_threads_those_that_help_share_rows() -> None:
    """Two pieces that wait for each other; each row is in one."""
    together, seen = threading.Barrier(2, timeout=20), list[tuple[int, int]]()

    def work(first: int, last: int) -> None:
        seen.append((first, last))
        if first in (0, 4):
            together.wait()

    def ask() -> None:
        with threads_of_torch(1), helped_by(IdleThreads(pool, 1)):
            by_row_pieces(work, 30, 9 * LEAST, multiple=2)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(ask).result()
    assert sorted(seen) == [(begin, min(begin + 4, 30)) for begin in range(0, 30, 4)]


def test_an_error_of_another_thread_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if first:
            raise ValueError(f"row {first}")

    with threads_of_torch(2), pytest.raises(ValueError, match="row 4"):
        by_row_pieces(work, 8, 4 * LEAST)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    with threads_of_torch(2):
        by_row_pieces(lambda first, last: None, 8, 4 * LEAST)
        child = os.fork()
        if child == 0:
            by_row_pieces(lambda first, last: None, 8, 4 * LEAST)
            os._exit(3)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3

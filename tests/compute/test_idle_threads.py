"""Threads of a pool that help another one when they have no task of their own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ders_core.compute.threads import IdleThreads

WAIT = 20.0
"""Seconds after which a test fails in place of waiting for ever."""


def test_idle_threads_take_pieces() -> None:
    """Three pieces that wait for each other need three threads."""
    together = threading.Barrier(3, timeout=WAIT)
    with ThreadPoolExecutor(3) as pool:
        idle = IdleThreads(pool, 2)
        pool.submit(idle.help, lambda _: together.wait(), range(3)).result(WAIT)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_piece_is_worked_on_once(count: int) -> None:
    done: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        idle = IdleThreads(pool, count)
        pool.submit(idle.help, done.append, range(1000)).result(WAIT)
    assert sorted(done) == list(range(1000))


def test_a_thread_whose_pool_is_busy_waits_for_nobody() -> None:
    """The other thread has a task of its own, which ends after the pieces are done."""
    over, done = threading.Event(), list[int]()
    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(over.wait, WAIT)
        pool.submit(IdleThreads(pool, 1).help, done.append, range(9)).result(WAIT)
        assert done == list(range(9))
        over.set()
        assert busy.result(WAIT)


@pytest.mark.parametrize("place", ["here", "there"])
def test_what_a_piece_raises_is_raised(place: str) -> None:
    asking, together = list[int](), threading.Barrier(2, timeout=WAIT)

    def work(piece: int) -> None:
        if piece < 2:
            together.wait()  # a piece for each thread
            if (threading.get_ident() == asking[0]) == (place == "here"):
                raise ValueError(place)

    def ask() -> None:
        asking.append(threading.get_ident())
        IdleThreads(pool, 1).help(work, range(50))

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match=place):
        pool.submit(ask).result(WAIT)

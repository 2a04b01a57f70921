"""Threads of a pool that help another one when they have no task of their own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from weakref import ref

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


def test_who_helps_is_waited_for() -> None:
    """What is raised here comes when no thread works on a piece any more."""
    asking, done, seen = list[int](), list[int](), list[int]()
    together = threading.Barrier(2, timeout=WAIT)

    def work(piece: int) -> None:
        together.wait()
        if threading.get_ident() == asking[0]:
            raise ValueError("here")
        time.sleep(0.1)
        done.append(piece)

    def ask() -> None:
        asking.append(threading.get_ident())
        try:
            IdleThreads(pool, 1).help(work, range(2))
        finally:
            seen.append(len(done))

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="here"):
        pool.submit(ask).result(WAIT)
    assert seen == [1]


class Piece:
    """What can be asked whether it is still there."""


def test_help_that_never_begins_keeps_neither_work_nor_pieces() -> None:
    """More tasks than threads: helpers stand behind the last of them in the pool's queue."""
    all_there, over, kept = threading.Event(), threading.Event(), list[ref[object]]()

    def ask() -> None:
        all_there.wait(WAIT)
        pieces = [Piece() for _ in range(5)]

        def work(piece: Piece) -> None:
            kept.append(ref(piece))

        kept.append(ref(work))
        IdleThreads(pool, 3).help(work, pieces)

    with ThreadPoolExecutor(2) as pool:
        busy, asked = pool.submit(over.wait, WAIT), pool.submit(ask)
        behind = pool.submit(over.wait, WAIT)
        all_there.set()
        asked.result(WAIT)
        alive = [each() for each in kept]
        over.set()
        assert busy.result(WAIT)
        assert behind.result(WAIT)
    assert alive == [None] * 6

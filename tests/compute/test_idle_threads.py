"""Threads of a pool that help another one when they have no task of their own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import ref

import pytest

from ders_core.checkpoint.room import Room
from ders_core.compute.threads import IdleThreads, _Asked, each_piece, helped_by

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


def test_nobody_is_lost_where_one_is_served_while_another_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that does not wait any more stands before one that does."""
    asked, served = _Asked(), list[str]()
    gone = asked.add(partial(served.append, "gone"))
    asked.add(partial(served.append, "there"))
    serving = threading.Thread(target=asked.serve)

    def cancelled() -> bool:
        serving.start()
        serving.join(0.1)
        return True

    assert gone.cancel()
    monkeypatch.setattr(gone, "cancelled", cancelled)
    asked.add(partial(served.append, "new"))
    serving.join(WAIT)
    while len(asked._open):
        asked.serve()
    assert served == ["there", "new"]


def test_several_ask_at_once_and_lose_no_piece() -> None:
    """Short pieces, so that helpers often come when all is done."""
    rounds, count = 200, 6
    done: list[list[tuple[int, int]]] = [[] for _ in range(4)]

    def ask(number: int) -> None:
        for turn in range(rounds):
            pieces = [(turn, piece) for piece in range(count)]
            idle.help(done[number].append, pieces)

    with ThreadPoolExecutor(4) as pool, ThreadPoolExecutor(2) as spare:
        idle = IdleThreads(pool, 3, spare, 2)
        asked = [pool.submit(ask, number) for number in range(4)]
        for each in asked:
            each.result(WAIT)
    expected = [(turn, piece) for turn in range(rounds) for piece in range(count)]
    assert [sorted(each) for each in done] == [expected] * 4


def test_who_asks_behind_those_that_are_gone_is_helped() -> None:
    """Many have asked, and were done before anybody came."""
    over, together = threading.Event(), threading.Barrier(2, timeout=WAIT)
    with ThreadPoolExecutor(2) as pool:
        idle = IdleThreads(pool, 1)
        busy = pool.submit(over.wait, WAIT)
        for _ in range(50):
            pool.submit(idle.help, lambda _: None, range(2)).result(WAIT)
        over.set()
        assert busy.result(WAIT)
        pool.submit(idle.help, lambda _: together.wait(), range(2)).result(WAIT)


def test_who_waits_for_room_helps() -> None:
    """Two pieces that wait for each other, while the other thread of the pool wants more room than
    there is; and again, as the first time it was asleep before anybody asked."""
    room, together, order = Room(), threading.Barrier(2, timeout=WAIT), list[str]()

    def first() -> None:
        with helped_by(idle), room.beside(10, 15):
            inside.set()
            waiting.wait(WAIT)
            for pause in (0.1, 0.0):
                time.sleep(pause)
                each_piece(lambda _: together.wait(), range(2))
            order.append("first")

    def second() -> None:
        inside.wait(WAIT)
        waiting.set()
        with helped_by(idle), room.beside(10, 15):
            order.append("second")

    inside, waiting = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        idle = IdleThreads(pool, 1)
        tasks = [pool.submit(first), pool.submit(second)]
        for task in tasks:
            task.result(WAIT)
    assert order == ["first", "second"]
    assert not idle._asked._waiting

"""Bounded pools of threads: order, how much is under way, and what happens at an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ders_core.compute import threads as threads_module
from ders_core.compute.pools import ahead, as_finished, cores, in_order
from ders_core.compute.threads import (
    available_threads,
    in_this_mode,
    one_thread,
    side_by_side,
    threads_for,
    threads_of_torch,
)

CPU = torch.device("cpu")
Flow = Callable[[Executor, Callable[[int], int], Any, int], Iterator[int]]


class Counting:
    """Counts how many calls run at once, and how many began."""

    def __init__(self, fail_at: int | None = None) -> None:
        self._lock = threading.Lock()
        self._fail_at = fail_at
        self.running = self.most = self.begun = 0

    def __call__(self, number: int) -> int:
        with self._lock:
            self.running += 1
            self.begun += 1
            self.most = max(self.most, self.running)
        time.sleep(0.001 * (number % 3))
        with self._lock:
            self.running -= 1
        if number == self._fail_at:
            raise ArithmeticError(str(number))
        return number * number


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_results_come_in_the_order_of_the_items(pool: ThreadPoolExecutor) -> None:
    count = Counting()
    assert list(in_order(pool, count, range(40), 3)) == [n * n for n in range(40)]
    assert 1 < count.most <= 3


def test_results_come_as_they_are_finished(pool: ThreadPoolExecutor) -> None:
    first = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert first.wait(30)
        return number

    flow = as_finished(pool, work, range(9), 2)
    early = [next(flow) for _ in range(8)]
    first.set()
    assert early == list(range(1, 9))
    assert list(flow) == [0]


@pytest.mark.parametrize("flow", [in_order, as_finished])
def test_no_more_than_asked_for_begin_before_their_turn(
    flow: Flow, pool: ThreadPoolExecutor
) -> None:
    count = Counting()
    results = flow(pool, count, iter(range(100)), 3)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.01)
        assert count.begun <= taken + 3
    results.close()  # type: ignore[attr-defined]
    assert count.running == 0
    assert count.begun <= 8
    assert list(flow(pool, count, [], 3)) == []


@pytest.mark.parametrize("flow", [in_order, as_finished])
def test_an_error_waits_for_what_has_begun(flow: Flow, pool: ThreadPoolExecutor) -> None:
    count = Counting(fail_at=4)
    with pytest.raises(ArithmeticError, match="4"):
        list(flow(pool, count, range(100), 4))
    assert count.running == 0
    assert count.begun < 12


def test_what_is_made_ahead_is_bounded() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    flow = ahead(items(), 2)
    assert [next(flow), next(flow)] == [0, 1]
    time.sleep(0.01)
    assert len(made) <= 4
    assert list(flow) == list(range(2, 20))


def test_threads_are_as_many_as_torch_has_before_it_is_told_to_use_one() -> None:
    assert cores() >= 1
    with threads_of_torch(5):
        assert available_threads() == 5
        with one_thread(), one_thread():
            assert (torch.get_num_threads(), available_threads()) == (1, 5)
            with side_by_side(CPU) as pool:
                seen = set(pool.map(lambda _: torch.get_num_threads(), range(50)))
                within = set(pool.map(lambda _: available_threads(), range(50)))
                assert len({t.name for t in pool._threads}) <= 5
            assert (seen, within) == ({1}, {1})
            assert torch.get_num_threads() == 1
        assert available_threads() == 5


def test_threads_are_bounded_by_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "WORKING_BYTES", 1000)
    with threads_of_torch(8):
        assert threads_for(100, 100, CPU) == 8
        assert threads_for(3, 100, CPU) == 3
        assert threads_for(100, 400, CPU) == 2
        assert threads_for(100, 4000, CPU) == threads_for(0, 0, CPU) == 1
        assert threads_for(100, 1, torch.device("cuda")) == 1


def test_a_function_keeps_its_mode_in_other_threads(pool: ThreadPoolExecutor) -> None:
    with torch.inference_mode():
        within = in_this_mode(torch.is_inference_mode_enabled)
    outside = in_this_mode(torch.is_inference_mode_enabled)
    assert pool.submit(within).result() is True
    assert pool.submit(outside).result() is False

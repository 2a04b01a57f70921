"""Python's collector stands still in a block, and does after it what it did before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from ders_core.files.few_collections import few_collections


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.enable()
    yield
    if was_on:
        gc.enable()
    else:
        gc.disable()


def test_blocks_may_be_in_blocks_and_end_by_errors() -> None:
    with few_collections():
        assert not gc.isenabled()
        with pytest.raises(ValueError, match="x"), few_collections():
            raise ValueError("x")
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    with few_collections(), few_collections():
        pass
    assert not gc.isenabled()


def test_blocks_of_threads_may_overlap() -> None:
    begun, may_end = Event(), Event()

    def other() -> None:
        with few_collections():
            begun.set()
            may_end.wait(60)

    thread = Thread(target=other)
    with few_collections():
        thread.start()
        begun.wait(60)
    assert not gc.isenabled()  # the other one goes on
    may_end.set()
    thread.join()
    assert gc.isenabled()

"""The collector of garbage is paused by any number of threads, and then as it was before."""

from __future__ import annotations

import gc
import threading

import pytest

from ders_core.compute.collector import paused_collector


def test_it_is_as_it_was_after_the_last_pause() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with paused_collector():
            inside.set()
            leave.wait(30)

    assert gc.isenabled()
    thread = threading.Thread(target=other)
    with paused_collector():
        thread.start()
        assert inside.wait(30)
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join(30)
    assert gc.isenabled()
    with pytest.raises(KeyError), paused_collector():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

"""SIGTERM and SIGINT request a stop; the worker stops at the next safe point of its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """asked: whether a stop was requested. A plain attribute, because a signal may arrive while the
    main thread holds a lock."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch SIGTERM and SIGINT while the block runs; a second SIGINT raises KeyboardInterrupt.

    Only the main thread can catch signals; in another thread the stop is never requested.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

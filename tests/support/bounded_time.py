"""A bound for what must not run for ever: far above any machine's time, far below an attack's."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(BaseException):
    """No Exception, so that nothing that catches those can hide it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after `seconds`, with TookTooLong. In the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    begun = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # pytest's own limit uses it too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001))

"""A bound for what must not run for ever: far above what it takes, far below what an attack takes.

It counts the processor time of this process, which other work on the machine does not change. What
waits without computing is left to pytest's own limit.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(BaseException):
    """No Exception, so that nothing that catches those can hide it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block after `seconds` of computing, with TookTooLong. In the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"not finished after {seconds} s of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

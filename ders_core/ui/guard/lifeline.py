"""A child process that ends with its parent, however the parent ends.

The parent keeps one end of a pair of sockets and the child reads at the other: the system closes
the parent's end when it dies, by SIGKILL too, and the child's read returns. The child may say
something.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

LIFELINE_VARIABLE = "DERS_LIFELINE"
"""Environment variable of the child: the number of the file that it reads."""

GRACE = 10.0
"""Seconds from the signal to the end of a child that does not end by itself."""


def hold_on(words: str = "") -> None:
    """If the parent gave a lifeline, say these words at it, and end this process when the parent is
    gone."""
    number = os.environ.pop(LIFELINE_VARIABLE, "")
    if number.isdecimal():
        if words:
            with suppress(OSError):  # the parent is gone
                os.write(int(number), words.encode())
        watch(int(number), _end)


def watch(descriptor: int, end: Callable[[], None]) -> threading.Thread:
    """Call `end` in a thread of its own when the other end is closed."""

    def wait() -> None:
        with suppress(OSError):  # it was closed with something unread in it
            while os.read(descriptor, 1):
                pass
        end()

    thread = threading.Thread(target=wait, name="lifeline", daemon=True)
    thread.start()
    return thread


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE)
    os._exit(1)

"""A process that works up to a message of its progress, waits there, and is killed.

It is forked (`forks.py`), so it costs no import.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.forks import FORKS, start

FOREVER = 600.0
"""Seconds; no test takes as long."""


@contextmanager
def held(work: Callable[..., object], *given: object, word: str, times: int) -> Iterator[None]:
    """Begin work(*given, progress=...), all of it picklable, in a process of its own. Once its
    progress has said a word that many times it waits, and with the block SIGKILL ends it.

    Raises AssertionError if the work ends before.
    """
    start()
    hears, tells = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_work, args=(work, given, word, times, tells))
    process.start()
    tells.close()
    try:
        assert hears.poll(FOREVER), "the work neither waits nor ends"
        try:
            hears.recv()
        except EOFError:
            raise AssertionError(f"the work ended before it said {word!r} {times} times") from None
        yield
    finally:
        process.kill()
        process.join()
        hears.close()
    assert process.exitcode == -signal.SIGKILL


def _work(
    work: Callable[..., object], given: tuple[object, ...], word: str, times: int, tells: Any
) -> None:
    said = 0

    def progress(done: int, total: int, message: str) -> None:
        nonlocal said
        said += word in message
        if said == times:
            tells.send("waiting")
            time.sleep(FOREVER)

    work(*given, progress=progress)

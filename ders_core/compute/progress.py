"""Progress callbacks and cancellation, and the meter that counts finished work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Progress = Callable[[int, int, str], None]
"""`progress(done, total, message)`, in units of the caller's choice. It may raise `Cancelled`,
which ends the work."""

Advance = Callable[[int, str], None]
"""`advance(count, message)`: `count` more units are done. `Meter.advance` is one."""

Tell = Callable[[str], None]
"""`tell(message)`: what is being done now. `Meter.report` is one."""

Bytes = TypeVar("Bytes", bound="bytes | memoryview")


def quiet(done: int, total: int, message: str) -> None:
    """The progress callback that does nothing."""


def uncounted(count: int, message: str) -> None:
    """The counting callback of work whose progress nobody watches."""


def untold(message: str) -> None:
    """The message callback of work that nobody watches."""


class Meter:
    """Counts the finished units of one piece of work, and reports each change to a callback.

    total: how many units the work has. What is reported never exceeds it. One thread at a time may
    use a meter. Every method that reports raises whatever the callback raises.
    """

    def __init__(self, total: int = 0, progress: Progress = quiet) -> None:
        self.total = total
        self.done = 0
        self._progress = progress

    def report(self, message: str) -> None:
        """Report the progress to the callback."""
        self._progress(min(self.done, self.total), self.total, message)

    def advance(self, count: int, message: str) -> None:
        """Count more finished units, and report."""
        self.done += count
        self.report(message)

    def at(self, done: int, message: str) -> None:
        """Set how many units are finished, and report."""
        self.done = done
        self.report(message)

    def finish(self, message: str) -> None:
        """Report that all units are finished."""
        self.at(self.total, message)


def counted(chunks: Iterable[Bytes], advance: Advance, message: str) -> Iterator[Bytes]:
    """The same chunks of bytes; each is counted once the consumer asks for the next one."""
    for chunk in chunks:
        yield chunk
        advance(len(chunk), message)

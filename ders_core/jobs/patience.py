"""A worker outlives a job store that cannot be used for a while, as on a full disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from ders_core.errors import JobError, StoreUnavailable
from ders_core.files.missing import printable
from ders_core.jobs.stop import Stop
from ders_core.jobs.workspace import Workspace

T = TypeVar("T")

PAUSE = 5.0
"""Seconds between two tries."""

LOOK = 0.2
"""Seconds between two looks at a request to stop, while the worker pauses."""


class Leaving(Exception):
    """The worker is asked to stop while the store cannot be used."""


class Patience:
    """Calls the store until it can be used. waiting: whether the last call was refused so far."""

    def __init__(self, workspace: Workspace, stop: Stop) -> None:
        self.waiting = False
        self._workspace = workspace
        self._stop = stop

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of `call`, which is repeated as long as it raises StoreUnavailable.

        Raises Leaving if the worker is asked to stop meanwhile, JobError if the workspace is gone.
        """
        while True:
            try:
                result = call()
            except StoreUnavailable as error:
                if not self.waiting:
                    tell(f"{error}; this worker waits, and goes on by itself")
                self.waiting = True
                self._pause()
            else:
                if self.waiting:
                    tell("the job store can be used again")
                self.waiting = False
                return result

    def _pause(self) -> None:
        end = time.monotonic() + PAUSE
        while True:
            if self._stop.asked:
                raise Leaving
            if not self._workspace.path.is_dir():
                place = printable(self._workspace.path)
                raise JobError(f"the workspace {place} was removed; nothing is left to work on")
            if time.monotonic() >= end:
                return
            time.sleep(LOOK)


def tell(text: object) -> None:
    """Write a line to the worker's log, if its disk has room for it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)

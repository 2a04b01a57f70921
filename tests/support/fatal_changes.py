"""Work in a process of its own that is killed right before one of its changes to a disk.

The processes are forked (`forks.py`), so a death costs no import. SIGKILL leaves them no time:
nothing is flushed, no block is left, no hidden file removed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from support.forks import FORKS, start

CHANGES = frozenset(("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"))
"""Python's audit events of names that appear, move or vanish; replacing is renaming."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """status: of the process, negative for a signal. changes: that it was about to make, or made;
    None if it was killed. printed: on both of its outputs."""

    status: int
    changes: int | None
    printed: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def run(
    work: Callable[..., object],
    *given: object,
    place: Path,
    fatal: int | None = None,
    seconds: float | None = None,
) -> Ended:
    """Do work(*given), both picklable, and end.

    place: changes below it are counted, and temporary files go to the folder `tmp` in it. fatal:
    the number, from 1, of the change before which the process is killed. An fsync counts too,
    whatever is synced. seconds: after which it is killed, whatever it does.
    """
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    printed = place.with_name(f"{place.name}.printed")
    start()
    told, tells = FORKS.Pipe(duplex=False)
    process = FORKS.Process(
        target=_work, args=(work, given, str(place.resolve()), fatal, str(printed), tells)
    )
    process.start()
    tells.close()
    process.join(seconds)
    process.kill()
    process.join()
    changes = None
    with suppress(EOFError):
        changes = told.recv()
    told.close()
    assert process.exitcode is not None
    return Ended(process.exitcode, changes, printed.read_text(errors="replace"))


def _work(
    work: Callable[..., object],
    given: tuple[object, ...],
    place: str,
    fatal: int | None,
    printed: str,
    tells: Any,
) -> None:
    os.environ["TMPDIR"] = str(Path(place) / "tmp")
    os.environ["OMP_NUM_THREADS"] = "1"
    tempfile.tempdir = None
    tempfile.gettempdir()  # tries the folder out with a file, which nobody would sweep
    seen = _counted(place, fatal)
    status = 0
    with open(printed, "w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            work(*given)
        except SystemExit as left:
            status = int(left.code or 0)
        file.flush()
    tells.send(next(seen) - 1)
    tells.close()
    sys.exit(status)


def _counted(place: str, fatal: int | None) -> Iterator[int]:
    """Count changes from now on: the next number is one above those seen."""
    numbers = count(1)

    def change() -> None:
        if next(numbers) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, given: tuple[Any, ...]) -> None:
        writes = event in CHANGES or (event == "open" and given[2] & WRITES)
        if writes and _is_below(place, given[0]):
            change()

    fsync = os.fsync

    def sync(handle: int) -> None:
        change()
        fsync(handle)

    os.fsync = sync  # type: ignore[assignment]  # no audit event tells of it
    sys.addaudithook(watch)
    return numbers


def _is_below(place: str, path: object) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str) and (path.startswith(place) or not os.path.isabs(path))

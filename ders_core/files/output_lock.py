"""The lock of an output that is being written, a hidden file beside it.

A process that is killed leaves it behind, without the lock. The next one that writes into the same
folder removes it, and the unfinished output that it describes, if nobody could continue that one;
of an output that got its name just before the process died, what nobody needs any more.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ders_core.errors import OutputBusy
from ders_core.files.flock import is_at, try_lock
from ders_core.files.untrusted_json import JsonFault, parse_json

MARK = ".ders-mark"
"""The file in an unfinished output by which the lock knows it again."""

MAKER = "ders-studio"
"""Stands in every lock file, so that nobody else's is ever removed."""

TRIES, PAUSE = 10, 0.02
"""A lock that is looked at is held for a moment; so several tries, and seconds between them."""

LARGEST = 4096
"""Bytes; what is larger is no lock of ours."""


class OutputLock:
    """A lock that is held. `mark` tells which unfinished output may be swept with it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._write({})

    def mark(self, partial: Path) -> None:
        """Mark an unfinished output that is worth nothing if this process dies."""
        token = uuid.uuid4().hex
        self._write({"token": token})
        (partial / MARK).write_text(token)

    def _write(self, entry: dict[str, Any]) -> None:
        text = json.dumps({"maker": MAKER, **entry}).encode()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text, 0)


def lock_path(target: Path) -> Path:
    """Where the lock of an output lies."""
    return target.with_name(f".{target.name}.lock")


@contextmanager
def output_lock(target: Path) -> Iterator[OutputLock]:
    """Hold the lock of an output. Raises OutputBusy if another process holds it, OSError if there
    can be none."""
    path = lock_path(target)
    handle = _locked(path)
    if handle is None:
        raise busy(target)
    try:
        yield OutputLock(handle)
    finally:
        with suppress(OSError):
            if is_at(handle, path):  # nobody else's, if ours was removed
                path.unlink()
        os.close(handle)


def is_written(target: Path) -> bool:
    """Whether a process holds the lock of an output now."""
    try:
        handle = os.open(lock_path(target), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_lock(handle, shared=True)
    finally:
        os.close(handle)


def busy(target: Path) -> OutputBusy:
    return OutputBusy(f"{target} is being written by another process; wait for it or cancel it")


def sweep_outputs(folder: Path, unfinished: str, forget: Callable[[Path], None]) -> None:
    """Remove what dead processes left in a folder: locks of ours that nobody holds, the outputs,
    still named with the ending `unfinished`, that could not be continued, and what `forget` removes
    of a finished one."""
    with suppress(OSError):
        for path in list(folder.glob(".*.lock")):
            with suppress(OSError):
                _sweep(path, unfinished, forget)


def _locked(path: Path) -> int | None:
    """The open file, locked and still at its path; None if another process holds it."""
    for _ in range(TRIES):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if try_lock(handle):
                if is_at(handle, path):
                    return handle
                os.close(handle)
                continue  # its holder has just removed it: that lock keeps nobody out
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(PAUSE)
    return None


def _sweep(path: Path, unfinished: str, forget: Callable[[Path], None]) -> None:
    name = path.name[1 : -len(".lock")]
    if name in ("", ".", ".."):
        return  # no output is called that
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        facts = os.fstat(handle)
        is_file = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.getuid()
        if not is_file or facts.st_size > LARGEST or not try_lock(handle):
            return
        entry = _entry(os.pread(handle, LARGEST, 0))
        if entry is None or not is_at(handle, path):
            return
        target = path.with_name(name)
        partial = target.with_name(target.name + unfinished)
        if "token" in entry and _token(partial) == entry["token"]:
            shutil.rmtree(partial)
        if target.is_dir() and not target.is_symlink():
            forget(target)
        path.unlink()
    finally:
        os.close(handle)


def _entry(content: bytes) -> dict[str, Any] | None:
    """What a lock of ours says; None if it is not ours."""
    try:
        entry = parse_json(content)
    except JsonFault:
        return None
    return entry if isinstance(entry, dict) and entry.get("maker") == MAKER else None


def _token(partial: Path) -> str | None:
    """What `OutputLock.mark` wrote into a directory; None if it is not marked."""
    if partial.is_symlink():
        return None
    with suppress(OSError, ValueError):
        return (partial / MARK).read_text()
    return None

"""Temporary directories: all of them are made here, and those of dead processes are removed.

In each lies a file that says whose it is, locked as long as its process lives.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ders_core.errors import OutputError
from ders_core.files.flock import is_at, try_lock
from ders_core.files.missing import printable

PREFIX = "ders-"
OWNER = ".ders-owner"
MAKER = b"ders-studio\n"
"""Stands in the file OWNER, so that nobody else's directory is ever removed."""

_RANDOM = re.compile(r"[a-z0-9_]{8}")
"""What tempfile puts at the end of a name."""

EMPTY_SECONDS = 60.0
"""After so long a directory without an OWNER, or with one that says nothing yet, is of no process
that is about to write it. One that was stopped in that very moment makes another directory."""

TRIES = 3


@contextmanager
def scratch_directory(purpose: str) -> Iterator[Path]:
    """Yield an empty directory in the place for temporary files (TMPDIR) that is removed when the
    block ends. purpose: a word for its name.

    Raises OutputError, which names TMPDIR, if it cannot be made.
    """
    with ExitStack() as stack:
        try:
            place = _place() or Path(tempfile.gettempdir())
        except OSError as error:  # no place of several can be written
            raise OutputError(f"no temporary file can be written: {error.strerror}") from error
        try:
            directory = stack.enter_context(scratch_in(place, f"{PREFIX}{purpose}-"))
        except OSError as error:
            raise OutputError(
                f"{printable(place)} holds temporary files and cannot be written "
                f"({error.strerror}); mend that, or set TMPDIR to another directory"
            ) from error
        yield directory


@contextmanager
def scratch_in(place: Path, prefix: str) -> Iterator[Path]:
    """As `scratch_directory`, but in the directory `place`, under a name that begins with `prefix`.

    What dead processes left there under the same prefix is removed first. Raises OSError.
    """
    sweep_scratch(place, prefix)
    directory, handle = _made(place, prefix)
    try:
        yield directory
    finally:
        _remove(directory)
        os.close(handle)


def sweep_scratch(place: Path | None = None, prefix: str = PREFIX) -> None:
    """Remove the directories of dead processes under a prefix; by default all in TMPDIR.

    Only those of this user, in which a file says that they are ours, and that no process holds.
    """
    place = place or _place()
    if place is None:
        return
    with suppress(OSError), os.scandir(place) as entries:
        for entry in list(entries):
            if entry.name.startswith(prefix) and _RANDOM.fullmatch(entry.name[-8:]):
                with suppress(OSError):
                    _sweep(Path(entry.path))


def _place() -> Path | None:
    """Where tempfile puts its files, without the file that it writes to find that out; None if only
    that can tell."""
    named = [tempfile.tempdir, *map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp"]
    for name in named:
        if isinstance(name, str) and name:
            place = Path(name).absolute()
            if name == tempfile.tempdir or os.access(place, os.R_OK | os.W_OK | os.X_OK):
                return place
    return None


def _made(place: Path, prefix: str) -> tuple[Path, int]:
    """Make a directory with an OWNER; returns both, the latter open and locked."""
    for left in reversed(range(TRIES)):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=place)).resolve()
        try:
            handle = _owned(directory)
            if is_at(handle, directory / OWNER):
                return directory, handle
            os.close(handle)
        except BaseException as error:
            shutil.rmtree(directory, ignore_errors=True)
            if left and isinstance(error, FileNotFoundError):
                continue  # swept: this process had been stopped for long
            raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))


def _owned(directory: Path) -> int:
    """Put the file OWNER into a directory, locked; returns it, open."""
    handle = os.open(directory / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):  # a disk without locks: then nobody sweeps there
            try_lock(handle)
        os.write(handle, MAKER)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sweep(directory: Path) -> None:
    facts = os.lstat(directory)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        return
    try:
        handle = os.open(directory / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if _is_old(facts):
            os.rmdir(directory)  # refused unless it is empty
        return
    try:
        owner = os.fstat(handle)
        words = os.pread(handle, 64, 0)
        begun = not words and _is_old(owner) and os.listdir(directory) == [OWNER]
        ours = owner.st_uid == os.getuid() and (words == MAKER or begun)
        if ours and try_lock(handle) and is_at(handle, directory / OWNER):
            _remove(directory)
    finally:
        os.close(handle)


def _is_old(facts: os.stat_result) -> bool:
    return time.time() - facts.st_mtime > EMPTY_SECONDS


def _remove(directory: Path) -> None:
    """Remove a directory, its file OWNER last: a process that is killed meanwhile leaves what can
    still be swept."""
    with suppress(OSError):
        for path in list(directory.iterdir()):
            if path.name != OWNER:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)

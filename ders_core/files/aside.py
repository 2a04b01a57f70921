"""A file appears complete or not at all: it is written under a hidden name, then renamed."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ders_core.files.flock import is_at, try_lock

ASIDE = ".*.tmp"
"""Pattern of the hidden names. A process that was killed may leave such a file behind."""


@contextmanager
def written_aside(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a hidden path next to `path` to write to; when the block ends, rename it to `path`.

    An existing file at `path` is replaced; readers see the old or the new one. A block that raises
    leaves `path` as it was and removes what it wrote. sync: wait until the disk has the bytes, so
    that they survive a crash of the machine and not only of this process. The hidden name is used
    by no other process on any host. Raises OSError if the file cannot be synced or renamed.
    """
    aside = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        yield aside
        if sync:
            sync_file(aside)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):  # the error is what is told
            aside.unlink(missing_ok=True)
        raise


@contextmanager
def locked_aside(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """As `written_aside`, for a block that lasts: the hidden file exists from the start and is
    locked, and what dead processes left of the same file is removed first.

    The block may write into the file, and not put another one in its place.
    """
    sweep_asides(path.parent, path.name)
    with written_aside(path, sync=sync) as aside, open(aside, "wb") as file:
        with suppress(OSError):  # a disk without locks: then nobody sweeps there
            try_lock(file.fileno())
        yield aside


def sweep_asides(folder: Path, name: str | None = None) -> None:
    """Remove hidden files in a folder that processes of this host left that are dead by now.

    name: only those of the file of this name, and hidden files of its hidden file.
    """
    of_file = ".+" if name is None else re.escape(name)
    ending = rf"(?:\.{re.escape(platform.node())}-(\d+)\.tmp)+"
    hidden = re.compile(rf"\.+{of_file}{ending}", re.DOTALL)
    with suppress(OSError):
        for aside in list(folder.iterdir()):
            match = hidden.fullmatch(aside.name)
            if match is not None:
                with suppress(OSError):
                    _sweep(aside, int(match[1]))


def _sweep(aside: Path, process: int) -> None:
    """Remove a hidden file, unless its process or any other that locked it lives."""
    if _lives(process):
        return
    handle = os.open(aside, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.fstat(handle).st_uid == os.getuid() and try_lock(handle) and is_at(handle, aside):
            aside.unlink()
    finally:
        os.close(handle)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _writer() -> str:
    """This process, as hidden names tell it."""
    return f"{platform.node()}-{os.getpid()}"


def sync_file(path: Path) -> None:
    """Wait until the disk has a file's bytes."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in a directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Wait until the disk has a directory with everything below it."""
    for path in directory.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_directory(path)
    sync_directory(directory)

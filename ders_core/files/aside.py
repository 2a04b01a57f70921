"""A file appears complete or not at all: it is written under a hidden name, then renamed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    aside = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        yield aside
        if sync:
            sync_file(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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

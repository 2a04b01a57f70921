"""Directories and files that other users of the machine cannot read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def private_directory(path: Path) -> None:
    """Make a directory with mode 0700, or close one that is ours: other users can do nothing in it.

    The home, what lies above it, and directories that users share (with the sticky bit, as /tmp)
    stay as they are. Raises OSError if it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    shared = found.st_mode & stat.S_ISVTX or Path.home().resolve().is_relative_to(path.resolve())
    if not shared:
        _close(path, found, 0o700)


def private_file(path: Path) -> None:
    """Make an empty file with mode 0600, or close one that is ours. Raises OSError if it cannot be
    made, or is a link to nowhere."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    close_file(path)


def close_file(path: Path) -> None:
    """Give a file that exists and is ours the mode 0600."""
    with suppress(FileNotFoundError):
        _close(path, path.stat(), 0o600)


def _close(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
        with suppress(OSError):  # a file system without modes
            path.chmod(mode)

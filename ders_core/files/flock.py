"""Locks on open files, which the system drops when their holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting; returns False if another process holds it.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file: else a lock on it keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False

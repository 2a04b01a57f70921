"""Stamps of files: what changes when a file is written again, without reading it.

A stamp decides that nothing changed; where stamps differ, only the content decides
(`ders_core.files.content`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from ders_core.errors import CheckpointError
from ders_core.files import remote
from ders_core.files.address import is_remote

CLOCK_NS = 2_000_000_000
"""Clocks of file systems are this coarse at most: a file that was written so shortly ago can be
written again without getting another stamp."""


@dataclass(frozen=True)
class Stamp:
    """size: bytes. mark: of a local file, the time in ns at which its content was changed last, and
    its inode. A file at an address has neither: there it is the version that the server tells
    (ETag, hash or date), "" if it tells none, and then the size decides alone.

    entry_ns: when the file's entry was changed last, in ns since 1970: besides what changes the
    content, also a new mode, owner or hard link, and a time of change that was set back. None at an
    address.
    """

    size: int
    mark: str
    entry_ns: int | None = None

    def is_same_content(self, other: Stamp) -> bool:
        """Whether nothing was written between the two; a new mode or a hard link is no change."""
        return (self.size, self.mark) == (other.size, other.mark)

    @property
    def is_settled(self) -> bool:
        """Whether a later change is sure to give another stamp."""
        if self.entry_ns is None:
            return bool(self.mark)
        return time.time_ns() - self.entry_ns > CLOCK_NS


def stamp(path: Path, *, refresh: bool = False) -> Stamp:
    """The stamp of a file, through links.

    refresh: ask the server again for what is known of a file at an address. Raises OSError or
    CheckpointError if there is no such file.
    """
    if is_remote(path):
        return Stamp(*remote.size_and_mark(path, refresh=refresh))
    status = os.stat(path)
    return Stamp(status.st_size, f"{status.st_mtime_ns}.{status.st_ino}", status.st_ctime_ns)


def version_of(stamps: Mapping[str, Stamp]) -> str:
    """A hex name of files as they are now, by the stamps of their names. It is another one once
    any of them was written again, copied, or got another mode: one content can have several."""
    digest = hashlib.sha256()
    for name in sorted(stamps):
        known = stamps[name]
        digest.update(f"{name}\0{known.size}\0{known.mark}\0{known.entry_ns}\0".encode())
    return digest.hexdigest()


def directory_version(directory: Path, *, without: Container[str] = ()) -> str:
    """`version_of` all files of a local directory but those of some names. Raises OSError if it
    cannot be listed."""
    files = (file for file in directory.iterdir() if file.name not in without)
    return version_of({file.name: stamp(file) for file in files if file.is_file()})


def check_unchanged(directory: Path, stamps: Mapping[str, Stamp]) -> None:
    """`check_same` for files of a directory, by their names."""
    for name, before in stamps.items():
        check_same(directory / name, before)


def check_same(path: Path, before: Stamp) -> None:
    """Raise CheckpointError if the content of a file was written since it had its stamp, or if
    another file has taken its place or none is there; also if a server does not answer."""
    try:
        now = stamp(path, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
        raise meanwhile(path, "removed") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read any more: {error.strerror}") from error
    if not now.is_same_content(before):
        raise meanwhile(path, "written")


def meanwhile(path: Path, what: str) -> CheckpointError:
    """The error for a file that is not the one that was opened. what: was done to it."""
    return CheckpointError(
        f"{path} was {what} while it was read; wait until nothing writes to it, then run again"
    )

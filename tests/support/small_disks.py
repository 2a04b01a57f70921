"""A disk that is full, read-only, or gone, for tests of what is written.

Where mounting is allowed (as root, in CI's containers for instance), it is a tmpfs of its own. Else
a folder stands for it: under a limit of the size of files (RLIMIT_FSIZE) writes fail with EFBIG
instead of ENOSPC, and folders without the right to write stand for a read-only disk.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


class SmallDisk:
    """A place to write to. mounted: whether it is a disk of its own."""

    def __init__(self, place: Path, mounted: bool) -> None:
        self.place, self.mounted = place, mounted

    @contextmanager
    def room(self, nbytes: int) -> Iterator[None]:
        """Let only about so many bytes be written (whole pages of 4096 bytes on a disk)."""
        if not self.mounted:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, handler)
            return
        filler = self.place / FILLER
        facts = os.statvfs(self.place)
        free = facts.f_bavail * facts.f_frsize
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - nbytes, 1))
        try:
            yield
        finally:
            filler.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be written."""
        if self.mounted:
            _run("mount", "-o", "remount,ro", str(self.place))
        else:
            self.place.chmod(0o555)
        try:
            yield
        finally:
            if self.mounted:
                _run("mount", "-o", "remount,rw", str(self.place))
            else:
                self.place.chmod(0o755)

    def names(self) -> list[str]:
        """What lies there now, at any depth."""
        return sorted(
            str(path.relative_to(self.place))
            for path in self.place.rglob("*")
            if path.name != FILLER
        )


@contextmanager
def small_disk(place: Path, nbytes: int = 8 << 20) -> Iterator[SmallDisk]:
    """A small disk at the new directory `place`."""
    place.mkdir()
    mounted = os.geteuid() == 0 and _mount(place, nbytes)
    try:
        yield SmallDisk(place, mounted)
    finally:
        if mounted:
            _run("umount", "--lazy", str(place))


def _mount(place: Path, nbytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)

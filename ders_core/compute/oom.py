"""Whether the kernel killed processes because memory had run out: its own counts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

COUNTERS = (
    Path("/sys/fs/cgroup/memory.events"),  # of the container, version 2
    Path("/sys/fs/cgroup/memory/memory.oom_control"),  # version 1
    Path("/proc/vmstat"),  # of the whole machine
)
GROUPS = Path("/proc/self/cgroup")
NAME = "oom_kill"


def oom_kills() -> int | None:
    """A number that grows whenever the kernel kills a process of this container or this machine
    for lack of memory; None where nothing tells it."""
    counts = [count for place in _places() for count in [_count(place)] if count is not None]
    return sum(counts) if counts else None


def _places() -> list[Path]:
    """The files to read: also that of the control group of this process, which may be below."""
    places = list(COUNTERS)
    with suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            number, _, group = line.split(":", 2)
            if number == "0" and group != "/":
                places.append(Path(f"/sys/fs/cgroup{group}/memory.events"))
    return places


def _count(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == NAME:
                return int(value)
    return None

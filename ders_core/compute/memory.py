"""How much memory of a device is free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ders_core.later import torch

CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where Linux tells the limit of a container and what it uses: versions 2 and 1."""

RECLAIMABLE = ("inactive_file", "active_file", "total_inactive_file", "total_active_file")
"""Names in memory.stat of cached files, which are dropped when memory is needed; version 1 tells
those of child groups too in the latter two, which then count."""


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that can be had, on a CPU without swapping.

    A container's limit counts where it is smaller than what the machine has left.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # of what only looks at headers, nothing gets here

    limits = [free for place in CGROUPS for free in [_container_free(*place)] if free is not None]
    return min([int(psutil.virtual_memory().available), *limits])


def _container_free(directory: Path, limit: str, usage: str) -> int | None:
    """Bytes below a container's limit; None if there is no limit or nothing tells it."""
    try:
        allowed = int((directory / limit).read_text())
        used = int((directory / usage).read_text())
        cached = _cached((directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max" is no number
        return None
    return max(allowed - used + cached, 0)


def _cached(lines: Sequence[str]) -> int:
    numbers = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    own, all_groups = RECLAIMABLE[:2], RECLAIMABLE[2:]
    names = all_groups if all_groups[0] in numbers else own
    return sum(numbers.get(name, 0) for name in names)

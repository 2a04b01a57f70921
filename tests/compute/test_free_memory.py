"""The free memory of the machine, or of the container in which the process runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ders_core.compute import memory

CPU = torch.device("cpu")
VERSIONS = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@pytest.mark.parametrize(
    ("version", "limit", "used", "stat", "free"),
    [
        (2, "9000", "5000", "anon 4000\ninactive_file 600\nactive_file 300\n", 4900),
        (2, "max", "5000", "inactive_file 600\n", 20_000),
        (2, "9000", "9500", "inactive_file 0\n", 0),
        (2, "90000", "0", "inactive_file 0\n", 20_000),
        (
            1,
            "9000",
            "5000",
            "inactive_file 1\ntotal_inactive_file 600\ntotal_active_file 300\n",
            4900,
        ),
        (1, "9223372036854771712", "5000", "total_inactive_file 600\n", 20_000),
    ],
)
def test_the_smaller_limit_counts(
    version: int,
    limit: str,
    used: str,
    stat: str,
    free: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = VERSIONS[version]
    for name, text in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, *names),))
    assert memory.free_memory(CPU) == free


def test_without_a_container_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, *VERSIONS[2]),))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))
    assert memory.free_memory(CPU) == 20_000

"""A workspace whose roots hold the test's files, and a checkpoint that takes seconds to pack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs_support import make_checkpoint

from ders_core.jobs import JobStore, Workspace


@pytest.fixture
def workspace(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path_factory.getbasetemp()))
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def store(workspace: Workspace) -> JobStore:
    return JobStore(workspace.store_path)


@pytest.fixture(scope="session")
def slow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 groups, each of which `SLOW_RECIPE` keeps a core busy with for a good part of a second."""
    return make_checkpoint(tmp_path_factory.mktemp("slow") / "moe", 4, 384, 512, 3)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 groups, packed in no time."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "moe", 2, 32, 48, 3)


@pytest.fixture(autouse=True)
def _no_leftover_roots() -> Iterator[None]:
    """The tests must not depend on what the shell that runs them has set."""
    before = os.environ.pop("DERS_WORKSPACE", None)
    yield
    if before is not None:
        os.environ["DERS_WORKSPACE"] = before

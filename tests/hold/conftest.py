"""Attacks in a short form for every run of the suite, and in a long one on request."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from support.large_workspaces import make_many_tensors
from support.quick_pages import prepared_once
from support.store_reads import Reads, counted_reads

from ders_core.jobs.workspace import Workspace

__all__ = ["prepared_once"]

ROOT = Path(__file__).parents[2]

LONG = "DERS_HOLD_LONG"
"""The environment variable that asks for the long forms: hours, not seconds. 1 stands for all of
them, a larger number for that many tries of each attack at most."""


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """rounds(short, long): how many times an attack is tried."""
    most = int(os.environ.get(LONG) or 0)

    def tries(short: int, long: int) -> int:
        if not most:
            return short
        return long if most == 1 else max(short, min(long, most))

    return tries


TRIED: dict[str, Counter[str]] = {}
"""What tests of this process have tried, by their names."""


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Counter[str]:
    """What a test has tried, by a word for it; the long form prints it at its end."""
    return TRIED.setdefault(request.node.nodeid.removeprefix("tests/hold/"), Counter())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """In the long form, what each attack tried; then the sums."""
    if not os.environ.get(LONG):
        return
    terminalreporter.section("what was tried")
    for name, tried in TRIED.items():
        terminalreporter.write_line(f"{name}: {_words(tried)}")
    terminalreporter.write_line(f"in all: {_words(sum(TRIED.values(), Counter()))}")


def _words(tried: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in tried.items()) or "nothing"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The app's workspace; no worker is started."""
    monkeypatch.setenv("DERS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("DERS_ROOTS", str(tmp_path))
    monkeypatch.setattr("ders_core.ui.job_progress.ensure_worker", lambda workspace: None)
    place = Workspace(tmp_path / "workspace")
    place.path.mkdir()
    return place


@pytest.fixture
def app(workspace: Workspace) -> Iterator[AppTest]:
    st.cache_resource.clear()
    st.cache_data.clear()
    yield AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    """A small checkpoint."""
    make_many_tensors(tmp_path / "moe", 2, 4)
    return tmp_path / "moe"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """What is read of job stores from now on."""
    return counted_reads(monkeypatch)

"""A workspace of its own for each test, and the app's pages run without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from support.quick_pages import prepared_once

from ders_core.jobs import Workspace
from ders_core.jobs.worker import run_worker

__all__ = ["prepared_once"]

ROOT = Path(__file__).parents[2]

Open = Callable[[str], AppTest]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixtral_dir: Path) -> Workspace:
    """The app's workspace; jobs wait until the test runs them with `work`."""
    monkeypatch.setenv("DERS_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("DERS_ROOTS", str(mixtral_dir.parent))
    monkeypatch.setattr("ders_core.ui.job_progress.ensure_worker", lambda workspace: None)
    st.cache_resource.clear()
    st.cache_data.clear()
    place = Workspace(tmp_path / "workspace")
    place.path.mkdir()
    return place


@pytest.fixture
def app(workspace: Workspace) -> Iterator[AppTest]:
    yield AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def work(workspace: Workspace) -> Callable[[], None]:
    """Do all jobs that wait, in this process."""
    return lambda: run_worker(workspace, stop_when_idle=True)


@pytest.fixture
def text(workspace: Workspace, tiny_text: str) -> Path:
    file = workspace.path / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file

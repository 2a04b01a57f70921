"""People who share a studio see whose job runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.ui import browser_name
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE

ROOT = Path(__file__).parents[2]
ELSEWHERE = "started elsewhere"
MINE, OTHER = "0123456789abcdef", "fedcba9876543210"


def named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cookies = {BROWSER_COOKIE: name}
    monkeypatch.setattr(type(st.context), "cookies", property(lambda self: cookies))


def test_a_run_is_told_to_be_started_elsewhere_and_not_to_be_started_here(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, MINE)
    opened(app, mixtral_dir)
    on(app, "runs").button(key="run_start").click().run()
    assert not app.error
    job = JobStore(workspace.store_path).list()[0]
    assert job.filed_by == MINE
    claims = Claims(workspace.store_path, "worker")
    claims.announce(1)
    claims.claim()
    for name in (MINE, OTHER):
        named(monkeypatch, name)
        app.run()
        visitor = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
        sidebar = "\n".join(str(element.value) for element in visitor.sidebar.markdown)
        assert (ELSEWHERE in words(app)) == (name == OTHER)
        assert (f"run · {ELSEWHERE}" in sidebar) == (name == OTHER)
        assert "started here" not in words(app) + sidebar
    assert "starting" in words(app)  # it was claimed, and has told nothing yet
    assert "waiting for the worker" not in words(app)


def test_of_a_command_or_a_browser_without_cookies_nothing_is_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(workspace.store_path)
    by_command = store.submit("analyze", {"checkpoint": "/m"})
    by_browser = store.submit("analyze", {"checkpoint": "/m"}, filed_by=OTHER)
    assert store.get(by_command.id).filed_by == ""
    named(monkeypatch, MINE)
    assert browser_name.filed_where(by_command) == ""
    assert browser_name.filed_where(by_browser) == ELSEWHERE
    for unusable in ("", "no name of ours", f"{OTHER}0"):
        named(monkeypatch, unusable)
        assert browser_name.browser_name() == ""
        assert browser_name.filed_where(by_browser) == ""


def test_who_resumes_a_job_is_who_started_it(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(mixtral_dir), "recipe": "name: x"}
    job = store.submit("run", spec, filed_by=OTHER)
    store.cancel(job.id)
    named(monkeypatch, MINE)
    on(app.run(), "runs")
    next(button for button in app.button if button.label == "Resume").click().run()
    assert not app.error
    assert (store.get(job.id).state, store.get(job.id).filed_by) == ("queued", MINE)
    assert store.resume(store.cancel(job.id).id).filed_by == ""  # by a command

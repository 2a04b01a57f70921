"""The Runs page's fields for tasks, as they are where lm-eval is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened

from ders_core.jobs import JobStore, Workspace


def test_tasks_and_the_most_questions_of_each_are_filed(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.ui.asked_tasks.find_spec", lambda name: True)
    on(opened(app, mixtral_dir), "runs")
    app.text_input(key="run_tasks").set_value("arc_easy, own.yaml").run()
    app.button(key="run_start").click().run()
    assert "task file" in app.error[0].value
    app.text_input(key="run_tasks").set_value("arc_easy, piqa").run()
    app.button(key="run_start").click().run()
    app.number_input(key="run_questions").set_value(200).run()
    app.button(key="run_start").click().run()
    assert not app.error
    few, every = (job.spec for job in JobStore(workspace.store_path).list(kind="run"))
    assert (every["tasks"], every["limit"]) == (["arc_easy", "piqa"], None)
    assert (few["tasks"], few["limit"]) == (["arc_easy", "piqa"], 200)

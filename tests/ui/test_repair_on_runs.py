"""*Repair…* on a finished run: what the form files, and what the page says of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.stored_results import REPAIRED, RESULTS
from support.studio_pages import on, opened, words

from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.kind import Kind, Result
from ders_core.jobs.kinds.repair import Repair, RepairResult
from ders_core.jobs.kinds.run import Run, RunResult
from ders_core.jobs.worker import run_worker
from ders_core.repair import DEFAULT_TRAIN


@pytest.fixture
def finished(workspace: Workspace, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run that is done; repairs will be done as soon as they are looked at."""

    def ended(result: type[Result], kind: str) -> Any:
        stored = result.model_validate(RESULTS[kind][0])
        return lambda self, context, spec: stored

    for cls, result, kind in ((Run, RunResult, "run"), (Repair, RepairResult, "repair")):
        assert issubclass(cls, Kind)
        monkeypatch.setattr(cls, "run", ended(result, kind))
    store = JobStore(workspace.store_path)
    spec = {"checkpoint": str(mixtral_dir), "recipe": "name: x", "device": "cpu"}
    number = store.submit("run", spec, "one bit").id
    run_worker(workspace, stop_when_idle=True)
    return store.get(number)


def test_a_finished_run_is_repaired(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, text: Path, finished: Job
) -> None:
    assert finished.state == "done", finished.error
    assert finished.result is not None
    opened(app, mixtral_dir)
    app.session_state["runs_table"] = {"selection": {"rows": [0], "columns": []}}
    on(app, "runs")
    start = f"repair_start_{finished.id}"
    app.session_state[f"repair_{finished.id}"] = True  # the form is open
    app.run()
    app.button(key=start).click().run()
    assert "text" in app.error[0].value
    app.text_area(key=f"repair_texts_{finished.id}").set_value("/etc/hostname").run()
    app.button(key=start).click().run()
    assert "/etc/hostname" in app.error[0].value
    app.text_area(key=f"repair_texts_{finished.id}").set_value(f"{text}\n").run()
    app.number_input(key=f"repair_steps_{finished.id}").set_value(40).run()
    app.button(key=start).click().run()
    assert not app.error
    assert app.session_state[f"repair_{finished.id}"] is False
    store = JobStore(workspace.store_path)
    job = store.list(kind="repair")[0]
    spec = Repair().parse(job.spec)
    assert spec.checkpoint == finished.result["packed"]
    assert (spec.original, spec.text, spec.heldout) == (str(mixtral_dir), (str(text),), None)
    assert (spec.steps, spec.device, spec.train) == (40, "cpu", DEFAULT_TRAIN)
    assert "one bit" in job.title
    assert job.title in words(app)
    run_worker(workspace, stop_when_idle=True)
    on(app, "runs")
    shown = words(app)
    for fact in (REPAIRED["kl_before"], REPAIRED["kl_after"]):
        assert isinstance(fact, dict)
        assert str(fact["mean"]) in shown
    assert "scales" in shown


def test_texts_of_the_demo_are_filled_in(
    app: AppTest,
    mixtral_dir: Path,
    text: Path,
    finished: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {("calibration.txt", mixtral_dir): text, ("heldout.txt", mixtral_dir): mixtral_dir}
    monkeypatch.setattr("ders_core.ui.repair_job.demo_text", lambda *of: texts[of])
    opened(app, mixtral_dir)
    app.session_state["runs_table"] = {"selection": {"rows": [0], "columns": []}}
    on(app, "runs")
    app.session_state[f"repair_{finished.id}"] = True
    app.run()
    assert app.text_area(key=f"repair_texts_{finished.id}").value == str(text)
    assert app.text_input(key=f"repair_heldout_{finished.id}").value == str(mixtral_dir)
    columns = [str(column) for table in app.dataframe for column in table.value]
    assert {"rel_error_output", "other_bases"}.isdisjoint(columns)
    assert "noise" in columns

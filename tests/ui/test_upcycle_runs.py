"""The Upcycle page: runs while they train and after, and what comes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import words
from support.upcycle_pages import opened, page

from ders_core import figures
from ders_core.jobs import Job, JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.upcycle import Data, UpcycleConfig
from ders_core.upcycle.history import HistoryWriter, Measured, Moment, Tables, read_history


def filed(workspace: Workspace, dense: Path, name: str) -> Job:
    config = UpcycleConfig(name=name, data=Data(texts=(workspace.path / "text.txt",)))
    spec = {"dense": str(dense), "config": config.to_yaml(), "name": name, "device": "cpu"}
    return JobStore(workspace.store_path).submit("upcycle", spec, name)


def write_history(directory: Path, steps: int = 12) -> None:
    directory.mkdir(parents=True)
    history = HistoryWriter(directory / "ders_upcycle.jsonl", 0)
    history.add_measurement(Measured(0, 40.0))
    for step in range(1, steps + 1):
        loads: dict[int, tuple[float, ...]] = {0: (0.5, 0.2, 0.2, 0.1), 1: (0.25, 0.25, 0.25, 0.25)}
        history.add_step(Moment(step, 4 - step / 10, 1.2, 1e-4, 0.5, 900.0, 3 * 10**9, loads))
    history.add_measurement(Measured(steps, 20.0))


def result_of(workspace: Workspace, job: Job, perplexity: float) -> dict[str, Any]:
    packed = workspace.run_dir(job.id) / "packed"
    upcycled = {
        "out": str(packed),
        "label": "LM 4",
        "steps": 12,
        "parameters": 200_000,
        "trained": 50_000,
        "dense_bytes": 400_000,
        "packed_bytes": 500_000,
        "moe_bytes": 1_000_000,
        "start_difference": 0.0,
        "dense_perplexity": 40.0,
        "perplexity": perplexity,
        "peak_memory": 3 * 10**9,
        "device": "CPU",
        "seconds": 12.5,
    }
    return {
        "packed": str(packed),
        "upcycled": upcycled,
        "verification": {"ok": True},
        "bytes_before": 1_000_000,
        "bytes_after": 500_000,
        "ratio": 0.5,
        "device": "cpu",
    }


def test_a_training_is_watched(app: AppTest, workspace: Workspace, dense_parent_dir: Path) -> None:
    job = filed(workspace, dense_parent_dir, "live")
    claims = Claims(workspace.store_path, "somebody")
    claims.announce(1)
    claim = claims.claim()
    assert claim is not None
    claim.advance("train", 0, 200, "starting", ())
    page(app)
    views = app.segmented_control(key="upcycle_view").options
    assert (app.metric[0].label, app.metric[0].value) == ("Step, of 200", "0")
    assert len(app.get("plotly_chart")) == 5
    write_history(workspace.run_dir(job.id) / "packed.partial")
    claim.advance("train", 12, 200, "step 12", ())
    app.run()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 2 * 5  # the one before stays until the new is drawn
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics == {
        "Step, of 200": "12",
        "Loss": f"{4 - 7.5 / 10:.3f}",
        "Perplexity": "20.00",
        "Tokens a second": "900",
        "Memory": "3.00 GB",
    }
    app.button(key=f"cancel_{job.id}").click().run()
    assert JobStore(workspace.store_path).get(job.id).cancel_requested
    claim.cancel()
    app.run()
    assert not app.exception
    assert app.dataframe[0].value["state"].tolist() == ["cancelled"]
    # A browser marks the chosen one by its label.
    assert app.segmented_control(key="upcycle_view").options == views


def test_ended_runs_are_compared_opened_and_exported(
    app: AppTest, workspace: Workspace, dense_parent_dir: Path
) -> None:
    store, claims = JobStore(workspace.store_path), Claims(workspace.store_path, "somebody")
    for name, perplexity in (("one", 30.0), ("two", 20.0)):
        job = filed(workspace, dense_parent_dir, name)
        claim = claims.claim()
        assert claim is not None
        write_history(workspace.run_dir(job.id) / "packed")
        claim.complete(result_of(workspace, job, perplexity))
    failed = filed(workspace, dense_parent_dir, "three")
    claim = claims.claim()
    assert claim is not None
    write_history(workspace.run_dir(failed.id) / "packed.partial", 3)
    claim.fail("the text is too short")
    page(app)
    app.segmented_control(key="upcycle_view").set_value("runs").run()
    assert not app.exception
    rows = app.dataframe[0].value
    assert rows["name"].tolist() == ["three", "two", "one"]
    assert rows["state"].tolist() == ["failed", "done", "done"]
    assert rows["steps"].tolist() == [3, 12, 12]
    assert app.dataframe[0].proto.placeholder == ""  # where a run has no figure, not "None"
    assert app.dataframe[0].proto.HasField("placeholder")
    assert rows["perplexity"].tolist()[1:] == [20.0, 30.0]
    assert rows["perplexity_change"].tolist()[1:] == [-50.0, -25.0]
    assert rows["trained"].tolist()[1:] == [0.05, 0.05]
    assert len(app.get("plotly_chart")) == 1
    app.session_state["upcycle_table"] = {"selection": {"rows": [0, 1], "columns": []}}
    app.run()
    assert not app.exception
    assert app.error[0].value == "the text is too short"
    assert len(app.get("plotly_chart")) == 1
    app.session_state["upcycle_table"] = {"selection": {"rows": [0], "columns": []}}
    app.run()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 5
    app.button(key=f"again_{failed.id}").click().run()
    assert store.get(failed.id).state == "queued"
    app.switch_page("pages/export.py").run()
    assert not app.exception
    (first, *_) = app.selectbox(key="export_run").options
    assert first.startswith("two · 500 kB · 50.0 % of original")


def test_a_finished_run_opens_as_a_checkpoint(
    app: AppTest, workspace: Workspace, dense_parent_dir: Path
) -> None:
    job = filed(workspace, dense_parent_dir, "one")
    claim = Claims(workspace.store_path, "somebody").claim()
    assert claim is not None
    write_history(workspace.run_dir(job.id) / "packed")
    claim.complete(result_of(workspace, job, 30.0))
    page(app)
    app.segmented_control(key="upcycle_view").set_value("runs").run()
    app.session_state["upcycle_table"] = {"selection": {"rows": [0], "columns": []}}
    app.run()
    app.button(key=f"open_{job.id}").click().run()
    kept = json.loads((workspace.path / "studio.json").read_text(encoding="utf-8"))
    assert kept["checkpoint"] == str(workspace.run_dir(job.id) / "packed")


def test_figures_of_a_training(tmp_path: Path) -> None:
    write_history(tmp_path / "packed")
    history = read_history(tmp_path / "packed")
    loss = figures.loss_curves({"a": history, "b": history})
    lines = [trace for trace in loss.data if trace.mode == "lines" and trace.name]
    assert [trace.name for trace in lines] == ["a", "b"]
    assert len({trace.line.color for trace in lines}) == 2
    dots = next(trace for trace in loss.data if trace.mode == "markers")
    assert list(dots.y) == pytest.approx([math.log(40), math.log(20)])
    spread = figures.latest_loads(history.loads)
    assert spread["smallest"].tolist() == pytest.approx([0.1, 0.25])
    assert spread["largest"].tolist() == pytest.approx([0.5, 0.25])
    assert spread["even"].tolist() == [0.25, 0.25]
    assert list(figures.memory_curve(history.steps).data[0].y) == [3.0] * 12
    nothing: Tables = read_history(tmp_path / "nowhere")
    for figure in (
        figures.loss_curves({"none": nothing}),
        figures.routing_spread(nothing.loads),
        figures.balance_curve(nothing.steps),
        figures.rate_curve(nothing.steps),
        figures.memory_curve(nothing.steps),
    ):
        assert not any(len(trace.y) for trace in figure.data)


@pytest.mark.slow
def test_from_a_dense_model_to_an_open_checkpoint(
    app: AppTest,
    workspace: Workspace,
    dense_parent_dir: Path,
    text: Path,
    work: Callable[[], None],
) -> None:
    opened(app, dense_parent_dir)
    app.text_area(key="up_texts").set_value(str(text)).run()
    app.text_input(key="up_heldout").set_value(str(text)).run()
    for name, value in (("steps", 2), ("batch", 1), ("window", 32)):
        app.number_input(key=f"up_{name}").set_value(value).run()
    app.button(key="up_start").click().run()
    work()
    job = JobStore(workspace.store_path).list(kind="upcycle")[0]
    assert (job.state, job.error) == ("done", None)
    app.run()
    assert app.dataframe[0].value["steps"].tolist() == [2]
    app.session_state["upcycle_table"] = {"selection": {"rows": [0], "columns": []}}
    app.run()
    app.button(key=f"open_{job.id}").click().run()
    assert not app.exception
    assert not app.error
    assert "4 experts × 2 layers" in words(app)

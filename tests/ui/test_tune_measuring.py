"""From the Tune page: a proof or a run of the size that is shown, and a click on what was
measured."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.page_scores import Kept, keep_scores
from support.recipe_pages import recipe_of
from support.stored_results import RESULTS
from support.studio_pages import on, opened, words

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.jobs.kinds.pilot import PilotResult, PilotSpec
from ders_core.jobs.kinds.prove import ProveSpec
from ders_core.jobs.kinds.run import RunSpec
from ders_core.jobs.kinds.series import SeriesResult, SeriesSpec
from ders_core.later import pd
from ders_core.packed.open import open_checkpoint
from ders_core.recipe import Recipe
from ders_core.tune.allocate import solve
from ders_core.tune.bounds import Bound
from ders_core.tune.demand import kept_layers
from ders_core.tune.written import as_recipe
from ders_core.ui import plots
from ders_core.ui.calculator import calculate
from ders_core.ui.tune import known
from ders_core.ui.tune.clicked import clicked_row
from ders_core.ui.tune.measured import measured
from ders_core.ui.tune.reports import of_job


@pytest.fixture
def kept(workspace: Workspace, mixtral_dir: Path) -> Kept:
    return keep_scores(workspace, mixtral_dir)


def test_a_proof_of_the_size_is_filed(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, kept: Kept, text: Path
) -> None:
    on(opened(app, mixtral_dir), "tune")
    app.slider(key="tune_size").set_value(70.0).run()
    app.multiselect(key="tune_keep").set_value([1]).run()
    app.toggle(key="tune_friendly").set_value(True).run()
    app.text_area(key="tune_floor").set_value("0=3").run()
    percent = float(str(app.slider(key="tune_size").value))
    app.session_state["tune_measure"] = True  # its button was pressed
    app.run()
    assert app.number_input(key="tune_heldout_tokens").value == 8192
    app.button(key="tune_prove").click().run()
    assert "Name a text" in app.error[0].value
    app.text_area(key="tune_heldout").set_value(f"mill={text}").run()
    app.button(key="tune_prove").click().run()
    assert not app.exception
    (job,) = JobStore(workspace.store_path).list(kind="prove")
    spec = ProveSpec.model_validate(job.spec)
    assert spec.bound == Bound("share", percent / 100)
    assert (spec.keep, spec.friendly, spec.floor) == ("1", True, ("0=3",))
    assert spec.text == {"mill": (str(text),)}
    assert (spec.checkpoint, spec.calibration) == (str(mixtral_dir), str(kept.calibration))


def test_a_run_of_what_is_shown_is_filed(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, kept: Kept, text: Path
) -> None:
    on(opened(app, mixtral_dir), "tune")
    app.slider(key="tune_size").set_value(60.0).run()
    app.multiselect(key="tune_keep").set_value([1]).run()
    percent = float(str(app.slider(key="tune_size").value))
    app.session_state["tune_measure"] = True
    app.run()
    app.text_area(key="tune_heldout").set_value(str(text)).run()
    app.button(key="tune_run").click().run()
    assert not app.exception
    (job,) = JobStore(workspace.store_path).list(kind="run")
    spec = RunSpec.model_validate(job.spec)
    found = solve(kept.scores, Bound("share", percent / 100), constraints=[kept_layers("1")])
    checkpoint = open_checkpoint(mixtral_dir)
    name = f"tuned-{percent:.1f}"
    assert Recipe.from_yaml(spec.recipe) == as_recipe(
        found, checkpoint, kept.calibration, name=name
    )
    assert (spec.text, spec.checkpoint) == ((str(text),), str(mixtral_dir))


def test_a_series_is_filed_and_what_it_measured_is_shown(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, kept: Kept, text: Path
) -> None:
    on(opened(app, mixtral_dir), "tune")
    app.multiselect(key="tune_keep").set_value([1]).run()
    app.session_state["tune_measure"] = True
    app.run()
    app.button(key="tune_series").click().run()
    assert "Name a text" in app.error[0].value
    app.text_area(key="tune_heldout").set_value(str(text)).run()
    app.number_input(key="tune_points").set_value(3).run()
    app.button(key="tune_series").click().run()
    assert not app.exception
    store = JobStore(workspace.store_path)
    (job,) = store.list(kind="series")
    spec = SeriesSpec.model_validate(job.spec)
    assert (spec.points, spec.keep, spec.text) == (3, "1", (str(text),))
    assert (spec.checkpoint, spec.calibration) == (str(mixtral_dir), str(kept.calibration))
    before = len(app.get("download_button"))
    claim = Claims(workspace.store_path, "somebody").claim()
    assert claim is not None
    claim.complete(RESULTS["series"][0])
    on(app, "tune")
    assert not app.exception
    result = SeriesResult.model_validate(RESULTS["series"][0])
    assert f"{job.title}: {result.series.sentence}." in words(app)
    assert len(app.get("download_button")) == before + 1
    (trial,) = result.tuned
    (row,) = measured(open_checkpoint(mixtral_dir)).query("role == 'tuned'").to_dict("records")
    share = trial.measured.nbytes / result.bytes_before
    quality = trial.measured.quality
    found = [row[name] for name in ("share", "kl", "low", "high")]
    assert found == [share, trial.measured.kl, quality.kl_low, quality.kl_high]
    sentence, page = of_job(store.get(job.id))
    assert sentence == result.series.sentence
    assert trial.recipe in unescape(page())


def test_a_click_on_a_measured_point_loads_it_once(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, claims = JobStore(workspace.store_path), Claims(workspace.store_path, "somebody")
    spec = {"checkpoint": str(mixtral_dir), "calibration": str(kept.calibration)}
    store.submit("prove", spec | {"text": "/t.txt", "budget": "40%"}, "proof")
    claim = claims.claim()
    assert claim is not None
    (result,) = RESULTS["prove"]
    trial = result["trials"][0] | {"recipe": _RECIPE}
    claim.complete(result | {"trials": [trial]})
    clicks: list[Any] = [None]
    real = plots._chart

    def chart(*arguments: Any, **options: Any) -> Any:
        shown = real(*arguments, **options)
        return clicks[-1] if options["selectable"] else shown

    monkeypatch.setattr(plots, "_chart", chart)
    on(opened(app, mixtral_dir), "tune")
    share, kl = trial["measured"]["nbytes"] / result["bytes_before"], 0.25
    clicks.append(_event(share, kl))
    app.slider(key="tune_size").set_value(60.0).run()
    assert not app.exception
    assert "current recipe" in app.toast[0].value
    app.slider(key="tune_size").set_value(62.0).run()
    assert not app.toast  # it is selected still
    on(app, "recipe")
    assert recipe_of(app) == Recipe.from_yaml(_RECIPE)


_RECIPE = "name: clicked\nrules:\n  - codec: quantized\n    bits: 3\n"


def _event(share: float, kl: float) -> Any:
    return SimpleNamespace(selection=SimpleNamespace(points=[{"x": 100 * share, "y": kl}]))


def test_a_pilot_is_filed_and_its_report_offered(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, text: Path
) -> None:
    on(opened(app, mixtral_dir), "tune")
    app.session_state["tune_pilot"] = True
    app.run()
    app.button(key="tune_pilot_start").click().run()
    assert "Name a text" in app.error[0].value
    app.text_area(key="tune_pilot_texts").set_value(f"mill={text}").run()
    app.text_area(key="tune_pilot_heldout").set_value(f"mill={text}\nriver={text}").run()
    app.text_area(key="tune_pilot_prompts").set_value("The mill\n\n  and so").run()
    app.number_input(key="tune_pilot_tokens").set_value(512).run()
    app.number_input(key="tune_pilot_max_tokens").set_value(1024).run()
    app.selectbox(key="tune_pilot_device").set_value("cpu").run()
    app.toggle(key="tune_pilot_friendly").set_value(True).run()
    app.button(key="tune_pilot_start").click().run()
    assert not app.exception
    (job,) = JobStore(workspace.store_path).list(kind="pilot")
    assert PilotSpec.model_validate(job.spec) == PilotSpec(
        checkpoint=str(mixtral_dir),
        text={"mill": (str(text),)},
        heldout={"mill": (str(text),), "river": (str(text),)},
        prompts=("The mill", "  and so"),
        friendly=True,
        device="cpu",
        tokens=512,
        max_tokens=1024,
    )
    claim = Claims(workspace.store_path, "somebody").claim()
    assert claim is not None
    claim.complete(RESULTS["pilot"][0])
    on(app, "tune")
    assert not app.exception
    pilot = PilotResult.model_validate(RESULTS["pilot"][0]).pilot
    assert pilot.sentence in words(app)
    shown = measured(open_checkpoint(mixtral_dir))
    assert shown["role"].tolist() == ["tuned"] * len(pilot.points)
    assert shown["share"].tolist() == [
        point.measured.nbytes / pilot.bytes_total for point in pilot.points
    ]
    assert shown["recipe"].tolist() == [point.recipe for point in pilot.points]
    assert len(app.get("download_button")) >= 1


def test_only_what_was_measured_is_loaded() -> None:
    table = pd.DataFrame({"name": ["a", "b"], "share": [0.3, 0.3], "kl": [0.25, 0.5]})
    row = clicked_row(_event(0.3, 0.5), table)
    assert row is not None
    assert row["name"] == "b"
    assert clicked_row(_event(0.3, 0.4), table) is None  # of a predicted line
    assert clicked_row(None, table) is None
    assert clicked_row({}, table) is None


def test_a_calibration_is_hashed_once_and_beside_the_app(
    app: AppTest, mixtral_dir: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def beside(function: Any, path: Path) -> Any:
        asked.append(path)
        return calculate(function, path)

    monkeypatch.setattr(known, "calculate", beside)
    on(opened(app, mixtral_dir), "tune")
    on(app, "tune")
    app.slider(key="tune_size").set_value(60.0).run()
    assert asked == [kept.calibration]

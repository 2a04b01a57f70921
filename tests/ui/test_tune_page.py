"""The Tune page files the job, and shows what saved scores foretell of every size."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.page_scores import Kept, keep_scores
from support.recipe_pages import recipe_of
from support.studio_pages import on, opened, words

from ders_core.errors import RecipeError
from ders_core.files.writer import write_text
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kinds.tune import TuneSpec
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import resolve
from ders_core.recipe import FIRST_PRESET, Recipe, presets
from ders_core.tune.allocate import Allocation, solve
from ders_core.tune.bounds import Bound
from ders_core.tune.demand import constraints_of, demanded_bound
from ders_core.tune.scores import Scores
from ders_core.tune.uniform import one_knob
from ders_core.tune.written import as_recipe
from ders_core.ui.tune.solutions import SIZES, outlook, smallest
from ders_core.ui.tune.wish import Wish
from ders_core.units import bytes_text, number_text


def metric(app: AppTest, label: str) -> str:
    return next(each.value for each in app.metric if each.label.startswith(label))


@pytest.fixture
def kept(workspace: Workspace, mixtral_dir: Path) -> Kept:
    return keep_scores(workspace, mixtral_dir)


def test_it_says_what_to_do_first(app: AppTest, mixtral_dir: Path) -> None:
    on(opened(app, mixtral_dir), "tune")
    assert "not scored yet" in words(app)
    assert not app.slider


def test_a_job_is_filed_with_texts_and_a_budget(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, text: Path
) -> None:
    on(opened(app, mixtral_dir), "tune")
    for typed, said in (("", "Name a text"), ("/etc/passwd", "outside")):
        app.text_area(key="tune_texts").set_value(typed).run()
        app.button(key="tune_start").click().run()
        assert said in app.error[0].value
    app.text_area(key="tune_texts").set_value(f"{text}\n").run()
    app.text_input(key="tune_budget").set_value("a lot").run()
    app.button(key="tune_start").click().run()
    assert "a lot" in app.error[0].value
    app.selectbox(key="tune_bound").set_value("perplexity").run()
    app.text_input(key="tune_max_rise").set_value("a bit").run()
    app.button(key="tune_start").click().run()
    assert "a bit" in app.error[0].value
    app.text_input(key="tune_max_rise").set_value("2% ").run()
    for field, typed, said in (("pin", "7=keep", "'7'"), ("floor", "0=many", "many")):
        app.text_area(key=f"tune_{field}").set_value(typed).run()
        app.button(key="tune_start").click().run()
        assert said in app.error[0].value
        app.text_area(key=f"tune_{field}").set_value("").run()
    app.text_area(key="tune_pin").set_value("0=entropy\n\n 1=keep").run()
    app.button(key="tune_start").click().run()
    assert not app.exception
    (job,) = JobStore(workspace.store_path).list(kind="tune")
    spec = TuneSpec.model_validate(job.spec)
    assert (spec.text, spec.max_rise, spec.budget) == ((str(text),), "2%", "")
    assert (spec.pin, spec.floor, spec.keep) == (("0=entropy", "1=keep"), (), "")
    assert spec.checkpoint == str(mixtral_dir)
    assert "waiting for the worker" in words(app)
    assert app.button(key="tune_start").disabled  # a second press would file it again


def test_a_known_calibration_can_be_scored_with(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, kept: Kept
) -> None:
    kept.file.unlink()
    on(opened(app, mixtral_dir), "tune")
    assert "not scored yet" in words(app)
    menu = app.selectbox(key="tune_calibration")
    menu.set_value(menu.options[1]).run()
    app.button(key="tune_start").click().run()
    (job,) = JobStore(workspace.store_path).list(kind="tune")
    assert job.spec["calibration"] == str(kept.calibration)
    assert not job.spec["text"]


def test_a_move_of_the_slider_solves_again(app: AppTest, mixtral_dir: Path, kept: Kept) -> None:
    on(opened(app, mixtral_dir), "tune")
    scores = kept.scores
    slider = app.slider(key="tune_size")
    assert slider.value == max(25.0, slider.min)  # the form's budget, as far as there is that size
    for percent in (40.0, 60.0):
        app.slider(key="tune_size").set_value(percent).run()
        assert not app.exception
        found = solve(scores, Bound("share", percent / 100))
        rival = one_knob(scores, found.nbytes)
        assert rival is not None
        assert metric(app, "Predicted size").startswith(bytes_text(found.nbytes))
        assert metric(app, "Predicted KL") == number_text(found.predicted_kl)
        assert metric(app, "Of one knob") == number_text(rival.predicted_kl)
        assert metric(app, "Read for a token") == bytes_text(found.read)
        table = app.dataframe[0].value
        assert table["codec"].tolist() == codecs(found)
    said = words(app)
    assert "2 of 4 experts saw fewer than 100 tokens" in said
    assert "1 matrices were not measured" in said
    assert len(app.get("plotly_chart")) >= 2


def test_a_recipe_that_is_too_long_is_not_loaded(
    app: AppTest, mixtral_dir: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(opened(app, mixtral_dir), "tune")

    def refuse(recipe: Recipe) -> str:
        raise RecipeError(f"{recipe.name} has too many characters")

    with monkeypatch.context() as patched:
        patched.setattr("ders_core.ui.session.text_of", refuse)
        app.button(key="tune_load").click().run()
    assert not app.exception
    (error,) = app.error
    assert "too many characters" in error.value
    assert recipe_of(on(app, "recipe")) == presets()[FIRST_PRESET]


def test_the_least_size_is_asked_for_until_the_slider_is_moved(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    kept: Kept,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_text(workspace.path / "typed.json", '[["tune_bound", "KL", null]]')
    asked = []

    def found(version: str, wish: Wish, bound: Bound, scores: Scores) -> None:
        asked.append(bound)

    monkeypatch.setattr("ders_core.ui.tune.explorer.smallest", found)
    on(opened(app, mixtral_dir), "tune")
    assert asked
    assert app.slider(key="tune_size").value == outlook("asked", Wish(), kept.scores).start
    app.slider(key="tune_size").set_value(40.0).run()
    asked.clear()
    app.slider(key="tune_size").set_value(60.0).run()
    assert not app.exception
    assert not asked


def codecs(found: Allocation) -> list[str]:
    return [
        "none" if each.candidate is None else each.candidate.codec.label for each in found.chosen
    ]


def test_the_recipe_is_loaded_with_what_was_chosen(
    app: AppTest, mixtral_dir: Path, kept: Kept
) -> None:
    on(opened(app, mixtral_dir), "tune")
    app.slider(key="tune_size").set_value(70.0).run()
    app.multiselect(key="tune_keep").set_value([1]).run()
    app.toggle(key="tune_friendly").set_value(True).run()
    app.text_area(key="tune_floor").set_value("0=3").run()
    app.text_area(key="tune_pin").set_value("0=none").run()
    assert "none" in app.error[0].value
    app.text_area(key="tune_pin").set_value("0=quantized").run()
    percent = float(str(app.slider(key="tune_size").value))
    app.button(key="tune_load").click().run()
    assert not app.exception
    loaded, checkpoint = recipe_of(app), open_checkpoint(mixtral_dir)
    found = solve(
        kept.scores,
        Bound("share", percent / 100),
        constraints=constraints_of("1", (), ["0=quantized"], ["0=3"]),
        friendly=True,
    )
    name = f"tuned-{percent:.1f}"
    assert loaded == as_recipe(found, checkpoint, kept.calibration, name=name)
    entries = resolve(loaded, checkpoint).entries
    assert {entry.packed for entry in entries if entry.layer == 1} == {False}
    assert any(entry.packed for entry in entries if entry.layer == 0)


@pytest.mark.parametrize(
    ("known", "changed"), [('"bytes"', '"b"'), ('"identity":"', '"identity":"f')]
)
def test_scores_that_are_damaged_or_of_something_else_are_not_shown(
    app: AppTest, mixtral_dir: Path, kept: Kept, known: str, changed: str
) -> None:
    on(opened(app, mixtral_dir), "tune")
    assert app.slider
    write_text(kept.file, kept.file.read_text(encoding="utf-8").replace(known, changed, 1))
    on(app, "tune")
    assert "not scored yet" in words(app)
    assert len(app.selectbox(key="tune_calibration").options) == 2  # it can be scored with again


def test_the_frontier_falls_from_the_least_size_to_no_loss(kept: Kept) -> None:
    scores = kept.scores
    sizes = outlook("frontier", Wish(), scores)
    points = list(zip(sizes.curve["share"], sizes.curve["kl"], strict=True))
    assert len(points) == SIZES
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(points))
    assert points[-1][1] == 0
    least = solve(scores, Bound("share", sizes.least / 100)).nbytes / scores.bytes_total
    assert 100 * least <= sizes.least <= 100 * least + 2
    assert sizes.least <= sizes.start <= sizes.most
    wish, bound = Wish(keep=(1,)), demanded_bound(None, None, "4%")
    within = solve(scores, bound, constraints=wish.constraints).nbytes / scores.bytes_total
    least_percent = smallest("frontier", wish, bound, scores)
    assert least_percent is not None
    assert within <= least_percent / 100 <= within + 0.001
    impossible = demanded_bound(None, 1e-6, None)
    assert (
        smallest("frontier", Wish(friendly=True, pin=("0=quantized",)), impossible, scores) is None
    )
    for share in (0.3, 0.5):
        rival = one_knob(scores, share * scores.bytes_total)
        assert sizes.knob_within(share) == (None if rival is None else rival.predicted_kl)

"""What was typed or chosen on a page is still there after another page, and in another session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from support.page_inputs import change, inputs, states_with
from support.stored_results import RUN
from support.studio_pages import on

from ders_core.analysis import analyze
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.recipe import presets

APP = Path(__file__).parents[2] / "app.py"
PAGES = sorted(page.stem for page in (APP.parent / "pages").glob("*.py"))
MENUS = ("recipe_load_",)
"""How keys of menus begin, which act when something is chosen, and are empty again."""
ONE_SESSION = {"run_trust", "calibration_trust", "tune_trust", "ask_trust"}
"""Keys of what a person allows for one session only."""
TYPED = {"up_layers_list": "1", "up_train": "*.norm.*"}
"""What is typed where "typed" would make the page refuse the rest of what it shows."""


@pytest.fixture
def furnished(
    app: AppTest, workspace: Workspace, qwen2_moe_dir: Path, dense_parent_dir: Path
) -> AppTest:
    """Every page has all that it can show: a checkpoint with a shared expert and its analysis, two
    runs, a saved recipe, a dense model."""
    checkpoint = open_checkpoint(qwen2_moe_dir)
    analyze(checkpoint).save(workspace.analysis_dir(checkpoint.identity))
    recipe, store = presets()["quantized-1bit"].to_yaml(), JobStore(workspace.store_path)
    for name in ("one", "two"):
        job = store.submit("run", {"checkpoint": str(qwen2_moe_dir), "recipe": recipe}, name)
        claim = Claims(workspace.store_path, "somebody").claim()
        assert claim is not None
        claim.complete(RUN | {"packed": str(workspace.run_dir(job.id) / "packed")})
    workspace.recipes.mkdir()
    (workspace.recipes / "saved.yaml").write_text(recipe, encoding="utf-8")
    app.run()
    for page, box, button, path in (
        ("checkpoint", "open_path", "open", qwen2_moe_dir),
        ("upcycle", "up_path", "up_open", dense_parent_dir),
    ):
        on(app, page)
        app.session_state[box] = str(path)
        app.run()
        app.button(key=button).click().run()
    return app


def settings(app: AppTest) -> dict[str, Any]:
    """Key of each input that keeps its value -> that value."""
    for widget in inputs(app):
        assert widget.key, f"{widget.label!r} has no key, so nothing can keep its value"
    return {widget.key: widget for widget in inputs(app) if not widget.key.startswith(MENUS)}


def values(app: AppTest) -> dict[str, Any]:
    return {key: widget.value for key, widget in settings(app).items()}


def fill(app: AppTest, page: str) -> set[str]:
    """Change every input of a page, one after the other, those too that only then appear. Returns
    the keys."""
    changed: set[str] = set()
    on(app, page)
    while left := {
        key: widget
        for key, widget in settings(app).items()
        if key not in changed and not widget.disabled
    }:
        key, widget = next(iter(left.items()))
        before = widget.value
        change(app, widget, TYPED.get(key, "typed"))
        assert not app.exception
        assert values(app).get(key, "hidden now") != before, f"{page}: {key} takes no value"
        changed.add(key)
    return changed


@pytest.mark.slow
def test_every_page_remembers_all_that_was_set(furnished: AppTest) -> None:
    changed: dict[str, set[str]] = {}
    filled: dict[str, dict[str, Any]] = {}
    for page in PAGES:
        changed[page] = fill(furnished, page)
        filled[page] = values(furnished)
    assert all(changed.values())
    assert changed["runs"] > {"run_text", "run_device", "run_workers", "run_trust"}
    for page in PAGES:
        assert values(on(furnished, page)) == filled[page], page
    anew = AppTest.from_file(str(APP), default_timeout=60).run()
    for page in PAGES:
        asked_again = dict.fromkeys(ONE_SESSION & changed[page], False)
        assert values(on(anew, page)) == filled[page] | asked_again, page


def test_what_is_typed_while_leaving_is_there_on_return(app: AppTest, mixtral_dir: Path) -> None:
    """The click that leaves a field is the one on another page: both reach the app together."""
    app.run()
    app.session_state["open_path"] = str(mixtral_dir)
    app.run()
    app.button(key="open").click().run()
    on(app, "runs")
    sent = states_with(app, app.text_area(key="run_text"), "typed")
    app.switch_page("pages/export.py")
    app._run(sent)
    assert on(app, "runs").text_area(key="run_text").value == "typed"


def script() -> None:
    """A page whose suggestion, owner, text and bounds are set by the test."""
    import streamlit as st

    from ders_core.ui import kept

    state = st.session_state
    if state.get("away"):
        st.stop()
    place = state.setdefault("place", "first")
    kept.field(st.text_input, "Suggested", key="suggested", start=place)
    kept.field(st.text_input, "Owned", key="owned", start="", of=place)
    kept.field(st.text_area, "Draft", key="draft", start=place, draft_of=place)
    kept.field(
        st.selectbox, "One of", key="one_of", start="a", options=list(state.get("offered", "abc"))
    )
    kept.field(
        st.slider, "Within", key="within", start=2, min_value=1, max_value=state.get("most", 9)
    )


@pytest.fixture
def page(workspace: Workspace) -> AppTest:
    return AppTest.from_function(script, default_timeout=60).run()


def test_a_suggestion_is_followed_until_it_is_changed(page: AppTest) -> None:
    field = page.text_input(key="suggested")
    assert field.value == "first"
    assert moved(page, "second").text_input(key="suggested").value == "second"
    page.text_input(key="suggested").set_value("mine").run()
    assert moved(page, "third").text_input(key="suggested").value == "mine"
    page.text_input(key="suggested").set_value("").run()
    assert moved(page, "fourth").text_input(key="suggested").value == ""
    page.text_input(key="suggested").set_value("fourth").run()  # as suggested, but a choice
    assert moved(page, "fifth").text_input(key="suggested").value == "fourth"


def moved(page: AppTest, place: str) -> AppTest:
    """The page elsewhere, after another page was looked at."""
    page.session_state["away"] = True
    page.run()
    page.session_state["away"] = False
    page.session_state["place"] = place
    return page.run()


def test_what_belongs_to_something_is_kept_for_each(page: AppTest) -> None:
    page.text_input(key="owned").set_value("of the first").run()
    page.session_state["place"] = "second"
    assert page.run().text_input(key="owned").value == ""
    page.text_input(key="owned").set_value("of the second").run()
    page.session_state["place"] = "first"
    assert page.run().text_input(key="owned").value == "of the first"
    assert moved(page, "second").text_input(key="owned").value == "of the second"


def test_a_draft_lasts_as_long_as_its_text(page: AppTest) -> None:
    page.text_area(key="draft").set_value("first, and more").run()
    assert moved(page, "first").text_area(key="draft").value == "first, and more"
    page.session_state["place"] = "second"
    assert page.run().text_area(key="draft").value == "second"
    page.session_state["place"] = "first"
    assert page.run().text_area(key="draft").value == "first"


def test_what_became_impossible_is_not_shown(page: AppTest) -> None:
    page.selectbox(key="one_of").set_value("c").run()
    page.slider(key="within").set_value(8).run()
    page.session_state["offered"], page.session_state["most"] = "ab", 5
    page.run()
    assert not page.exception
    assert (page.selectbox(key="one_of").value, page.slider(key="within").value) == ("a", 5)


def test_new_bounds_leave_the_value(page: AppTest) -> None:
    """To Streamlit, a slider with other bounds is another slider, which starts at its least."""
    page.session_state["most"] = 5
    assert page.run().slider(key="within").value == 2
    page.slider(key="within").set_value(4).run()
    page.session_state["most"] = 6
    assert page.run().slider(key="within").value == 4


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"suggested": 3}', '[["suggested", 3, null]]'])
def test_a_damaged_file_is_as_none(workspace: Workspace, text: str) -> None:
    (workspace.path / "typed.json").write_text(text, encoding="utf-8")
    page = AppTest.from_function(script, default_timeout=60).run()
    assert not page.exception
    assert page.text_input(key="suggested").value == "first"
    page.text_input(key="suggested").set_value("mine").run()
    again = AppTest.from_function(script, default_timeout=60).run()
    assert again.text_input(key="suggested").value == "mine"


def test_sessions_keep_what_the_others_typed(page: AppTest) -> None:
    other = AppTest.from_function(script, default_timeout=60).run()
    page.text_input(key="owned").set_value("by one").run()
    other.text_area(key="draft").set_value("by the other").run()
    third = AppTest.from_function(script, default_timeout=60).run()
    assert third.text_input(key="owned").value == "by one"
    assert third.text_area(key="draft").value == "by the other"


def choice() -> None:
    import streamlit as st

    from ders_core.ui import kept

    if st.button("Empty"):
        st.session_state["kind"] = None
    draw = st.segmented_control
    st.text(kept.field(draw, "Kind", key="kind", start="a", options=["a", "b"], required=True))


def test_what_must_be_chosen_is_never_nothing(workspace: Workspace) -> None:
    page = AppTest.from_function(choice, default_timeout=60).run()
    assert page.button[0].click().run().text[0].value == "a"

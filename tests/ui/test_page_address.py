"""What is open and chosen stands in the page's address, for a copied link and a reload."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path
from random import Random

import pytest
from streamlit.testing.v1 import AppTest
from support.recipe_pages import apply_text, recipe_of
from support.stored_results import PARAMETERS, RUN
from support.studio_pages import on, opened, words

from ders_core.analysis import Analysis, analyze, square
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.recipe import FIRST_PRESET, Recipe, presets
from ders_core.ui.linked_recipe import MOST_LINKED
from ders_core.ui.opened import Open
from ders_core.units import number_text


def test_a_link_opens_its_checkpoint_for_the_session_that_follows_it(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, qwen2_moe_dir: Path
) -> None:
    opened(app, mixtral_dir)
    saved = Open.load(workspace)
    other = AppTest.from_file(app._script_path, default_timeout=60)
    other.query_params["checkpoint"] = str(qwen2_moe_dir)
    other.run()
    assert "qwen2_moe" in words(other)
    assert other.query_params["checkpoint"] == str(qwen2_moe_dir)
    assert Open.load(workspace) == saved


def test_a_link_out_of_the_roots_or_to_an_address_opens_nothing(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    opened(app, mixtral_dir)
    for place in ("/etc", "hf://somebody/something", "no\0path"):
        other = AppTest.from_file(app._script_path, default_timeout=60)
        other.query_params["checkpoint"] = place
        other.run()
        assert not other.exception
        assert other.query_params["checkpoint"] == str(mixtral_dir)


def field_with_address() -> None:
    import streamlit as st

    from ders_core.ui import kept

    chosen = kept.field(
        st.selectbox, "Layer", key="layer", start=0, of="/m", options=[0, 1, 2], address="layer"
    )
    st.markdown(f"layer {chosen}")


def test_a_field_is_set_by_the_address_and_sets_it(workspace: Workspace) -> None:
    first = AppTest.from_function(field_with_address).run()
    assert first.query_params["layer"] == "0"
    first.selectbox(key="layer").set_value(1).run()
    assert first.query_params["layer"] == "1"
    linked = AppTest.from_function(field_with_address)
    linked.query_params["layer"] = "2"
    assert words(linked.run()) == "layer 2"
    assert words(linked.selectbox(key="layer").set_value(0).run()) == "layer 0"
    wrong = AppTest.from_function(field_with_address)
    wrong.query_params["layer"] = "7"
    assert words(wrong.run()) == "layer 0"  # what a person chose last
    assert wrong.query_params["layer"] == "0"


def text_and_number() -> None:
    import streamlit as st

    from ders_core.ui import kept

    named = kept.field(st.text_input, "Name", key="named", start="", address="named")
    page = kept.field(
        st.slider, "Page", key="page", start=1, min_value=1, max_value=4, address="page"
    )
    st.markdown(f"{named} {page}")


def test_text_and_whole_numbers_stand_in_the_address_once_they_are_set(
    workspace: Workspace,
) -> None:
    first = AppTest.from_function(text_and_number).run()
    assert "named" not in first.query_params
    assert "page" not in first.query_params
    linked = AppTest.from_function(text_and_number)
    linked.query_params["named"], linked.query_params["page"] = "bit", "3"
    assert words(linked.run()) == "bit 3"
    linked.slider(key="page").set_value(1).run()
    assert "page" not in linked.query_params
    assert linked.query_params["named"] == "bit"
    for wrong, nearest in (("99", 4), ("-1", 1), ("x", 1), ("1e9", 1), ("9" * 400, 1)):
        other = AppTest.from_function(text_and_number)
        other.query_params["page"] = wrong
        assert words(other.run()).strip() == str(nearest)


def another(app: AppTest, **address: str) -> AppTest:
    """Another browser that follows a link."""
    other = AppTest.from_file(app._script_path, default_timeout=60)
    for name, told in address.items():
        other.query_params[name] = told
    return other.run()


def test_a_link_brings_its_recipe_for_the_session_that_follows_it(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    opened(app, mixtral_dir)
    assert app.query_params["recipe"] == FIRST_PRESET
    mine = presets()["quantized-1bit"].model_copy(update={"name": "mine"})
    workspace.recipes.mkdir()
    (workspace.recipes / "mine.yaml").write_text(mine.to_yaml(), encoding="utf-8")
    saved = Open.load(workspace)
    for name, recipe in (("lossless", presets()["lossless"]), ("mine", mine)):
        other = on(another(app, recipe=name), "recipe")
        assert recipe_of(other) == recipe
        assert other.query_params["recipe"] == name
        other.button(key="recipe_undo").click().run()
        assert recipe_of(other) == presets()[FIRST_PRESET]
    assert Open.load(workspace).recipe in (saved.recipe, presets()[FIRST_PRESET].to_yaml())


def test_a_link_brings_a_recipe_that_was_not_saved(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """Another browser and a reload find the same, whatever is current in the workspace by then."""
    changed = presets()["quantized-1bit"].model_copy(update={"name": "lossless", "seed": 7})
    Open(str(mixtral_dir), changed.to_yaml()).save(workspace)
    assert "recipe" not in app.run().query_params
    link = app.query_params["recipe-text"]
    Open(str(mixtral_dir), presets()["keep"].to_yaml()).save(workspace)
    for _ in ("a link", "a reload"):
        other = another(app, **{"recipe-text": link})
        assert other.query_params["recipe-text"] == link
        assert recipe_of(on(other, "recipe")) == changed
        assert not other.error
    assert Open.load(workspace).recipe == presets()["keep"].to_yaml()
    other.button(key="recipe_undo").click().run()
    other.switch_page("app.py").run()  # around which the frame is
    assert other.query_params["recipe"] == "keep"
    assert "recipe-text" not in other.query_params


def test_what_a_link_brought_is_not_saved_with_a_later_change(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, qwen2_moe_dir: Path
) -> None:
    mine, linked = (presets()[name].to_yaml() for name in ("keep", "lossless"))
    Open(str(mixtral_dir), mine, (str(mixtral_dir),)).save(workspace)
    other = another(app, recipe="lossless")
    opened(other, qwen2_moe_dir)
    assert recipe_of(on(other, "recipe")).to_yaml() == linked
    places = str(qwen2_moe_dir), str(mixtral_dir)
    assert Open.load(workspace) == Open(places[0], mine, places)
    third = another(app, checkpoint=str(mixtral_dir))
    changed = presets()["quantized-1bit"].to_yaml()
    apply_text(third, changed)
    assert recipe_of(third).to_yaml() == changed
    assert third.session_state["studio_open"].checkpoint == str(mixtral_dir)
    assert Open.load(workspace) == Open(places[0], changed, places)


def linked_text(text: str) -> str:
    """A text as a link has it, by another way than the studio's."""
    packer = zlib.compressobj(1)
    content = packer.compress(text.encode()) + packer.flush()
    return base64.b64encode(content, altchars=b"-_").decode().rstrip("=")


TOO_MUCH = f"name: x\n# {' ' * MOST_LINKED}\n"
GROWS = "name: x\nrules:\n" + "- {codec: quantized, bits: 2}\n" * 900


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (linked_text("name: x\nrules:\n- codec: quantized\n  bits: 77\n"), "line 4"),
        (linked_text("name: x\ncalibration: /etc/passwd\n"), "lies outside the folders"),
        (linked_text("name: x\nbase: {dense: /etc}\n"), "lies outside the folders"),
        (linked_text("name: x\ncalibration: hf://a/b\n"), "lies outside the folders"),
        (linked_text("name: x\n" * 9)[:-4], "damaged|cut"),
        (linked_text(TOO_MUCH), f"more than {MOST_LINKED} characters"),
        (linked_text(GROWS), f"at most {MOST_LINKED}"),
        ("Zm9v", "damaged"),
        ("é?", "damaged"),
        ("A" * 6001, "more than 6000 characters"),
    ],
)
def test_a_damaged_or_forbidden_recipe_of_a_link_is_told_and_not_taken(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, text: str, told: str
) -> None:
    opened(app, mixtral_dir)
    before = Open.load(workspace)
    other = another(app, **{"recipe-text": text})
    assert not other.exception
    (error,) = (each.value for each in other.error)
    assert error.startswith("The recipe of the link was not taken: ")
    assert re.search(told, error)
    assert other.query_params["recipe"] == FIRST_PRESET
    assert "recipe-text" not in other.query_params
    assert [each.value for each in on(other, "recipe").error] == [error]  # until it is changed
    assert recipe_of(other) == presets()[FIRST_PRESET]
    other.session_state["presets"] = True
    other.run().button(key="preset_keep").click().run()
    assert not other.error
    other.button(key="recipe_undo").click().run()
    assert recipe_of(other) == presets()[FIRST_PRESET]
    assert not other.error
    assert Open.load(workspace).checkpoint == before.checkpoint


def test_a_recipe_that_no_address_holds_is_told_to_be_saved(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    random = Random(3)  # rates that no compression makes short
    rules = [
        {"codec": "sparse", "drop_rate": random.random(), "layers": str(n % 2)} for n in range(900)
    ]
    long = Recipe.model_validate({"name": "long", "rules": rules})
    Open(str(mixtral_dir), long.to_yaml()).save(workspace)
    assert not {"recipe", "recipe-text"} & app.run().query_params.keys()
    assert "too long for the page's address" in words(on(app, "recipe"))
    app.button(key="recipe_save").click().run()
    assert "too long" not in words(app)
    assert app.switch_page("app.py").run().query_params["recipe"] == "long"


@pytest.mark.parametrize("name", ["../studio", "/etc/passwd", "no such", "a\0b", ""])
def test_a_link_to_no_recipe_changes_nothing(app: AppTest, name: str) -> None:
    other = another(app, recipe=name)
    assert not other.exception
    assert other.query_params["recipe"] == FIRST_PRESET


@pytest.fixture
def three_runs(workspace: Workspace) -> list[int]:
    """Finished ones; the ids, the newest first."""
    store, ids = JobStore(workspace.store_path), []
    for number in range(3):
        ids.append(store.submit("run", PARAMETERS["run"], f"run {number}").id)
        claim = Claims(store.path, "me").claim()
        assert claim is not None
        claim.complete(RUN)
    return ids[::-1]


def test_a_link_selects_the_runs_that_it_compares(
    app: AppTest, mixtral_dir: Path, three_runs: list[int]
) -> None:
    opened(app, mixtral_dir)
    on(app, "runs")
    assert "compared" not in app.query_params
    app.session_state["runs_table"] = {"selection": {"rows": [0, 2], "columns": []}}
    app.run()
    link = app.query_params["compared"]
    assert link == f"{three_runs[0]},{three_runs[2]}"
    on(app, "export")
    assert rows(on(app, "runs")) == [0, 2]  # nor are they lost to another page
    other = another(app, compared=link)
    assert rows(on(other, "runs")) == [0, 2]
    assert f"{three_runs[0]},{three_runs[2]}" == other.query_params["compared"]
    gone = another(app, compared="999,x,-1,²")
    assert rows(on(gone, "runs")) == []


def rows(app: AppTest) -> list[int]:
    return list(app.session_state["runs_table"]["selection"]["rows"])


def test_a_link_and_a_click_show_their_pair_of_experts(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    analyze(checkpoint).save(workspace.analysis_dir(checkpoint.identity))
    on(opened(app, mixtral_dir), "redundancy")
    assert (app.query_params["expert"], app.query_params["with"]) == ("0", "1")
    app.selectbox(key="pair_second").set_value(3).run()
    assert app.query_params["with"] == "3"
    other = on(another(app, expert="2", **{"with": "1"}), "redundancy")
    analysis = Analysis.load(workspace.analysis_dir(checkpoint.identity))
    group = analysis.group_keys()[0]
    apart = square(analysis.pairs.of_group(*group), "one_minus_cos")[2, 1]
    assert f"**E2 and E1**: 1 − cos = {number_text(apart)}" in words(other)
    other.selectbox(key="pair_second").set_value(2).run()
    assert "twice" in words(other)
    # A click on a cell of the map chooses its pair; one on a joint of the tree chooses nothing.
    row = analysis.expert_tree(*group).order.index(1)
    for point in ({"x": "E3", "y": row}, {"x": -3.1, "y": 0.5}, {"x": "E3", "y": 99}):
        app.session_state["similarity"] = {"selection": {"points": [point]}}
        app.run()
        assert not app.exception
        assert (app.query_params["expert"], app.query_params["with"]) == ("1", "3")
    # So does what the colours have the range of.
    assert app.query_params["range"] == "all layers"
    app.segmented_control(key="red_range").set_value("this layer").run()
    assert app.query_params["range"] == "this layer"

"""A row a layer, which stands for its projections."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.messages import raises_saying
from support.recipe_pages import edit_groups, groups_editor, recipe_of
from support.studio_pages import on, opened

from ders_core.codecs import Quantized
from ders_core.errors import CodecError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.plan import Plan, resolve
from ders_core.recipe import presets
from ders_core.ui.recipe_rows import (
    SEVERAL,
    Edits,
    Row,
    entry_edits,
    folded,
    rows_of,
    shows_other_ticks,
    ticks_after,
)
from ders_core.ui.recipe_table import table


@pytest.fixture
def plan(mixtral_dir: Path) -> Plan:
    return resolve(presets()["mixed"], open_checkpoint(mixtral_dir))


def test_a_layer_opens_to_its_projections(plan: Plan) -> None:
    rows = rows_of(plan, {0})
    assert rows == [Row(0, (0, 1, 2)), Row(0, (0,)), Row(0, (1,)), Row(0, (2,)), Row(1, (3, 4, 5))]
    groups = table(plan, None)
    shown = folded(groups, rows, {0}, {1})
    assert shown["open"].fillna("").tolist() == ["▼", "", "", "", "▶"]
    assert shown["projection"].tolist() == ["all 3", "gate", "up", "down", "all 3"]
    assert shown["codec"].tolist()[:4] == [SEVERAL, "magnitude", "magnitude", "quantized"]
    assert shown["strength"].isna().tolist()[:4] == [True, False, False, False]
    assert shown["tick"].tolist() == [False, False, True, False, False]
    layers = shown.iloc[[0, 4]]
    assert layers["after"].sum() == pytest.approx(groups["after"].sum())
    share = 100 * groups["after"][:3].sum() / groups["before"][:3].sum()
    assert layers["share"].iloc[0] == pytest.approx(share)


def test_an_edit_of_a_layer_is_one_of_each_projection(plan: Plan) -> None:
    rows = rows_of(plan, {0})
    shown = folded(table(plan, None), rows, {0}, set())
    edits: Edits = {4: {"codec": "entropy", "tick": True}, 3: {"strength": 3}, 1: {"tick": True}}
    assert entry_edits(shown, rows, edits) == {
        **{number: {"codec": "entropy"} for number in (3, 4, 5)},
        2: {"strength": 3},
    }
    assert ticks_after(rows, set(), edits) == {0, 3, 4, 5}
    assert entry_edits(shown, rows, {0: {"codec": SEVERAL}}) == {}
    with raises_saying(CodecError, "layer 0", "several codecs"):
        entry_edits(shown, rows, {0: {"strength": 3}})


def test_ticked_rows_are_set_at_once_and_stay_ticked(app: AppTest, mixtral_dir: Path) -> None:
    on(opened(app, mixtral_dir), "recipe")
    keys = {(0, "up"), (1, "gate"), (1, "up"), (1, "down")}
    app.session_state["recipe_ticked"] = {str(mixtral_dir): keys}
    app.run()
    app.selectbox(key="set_codec").set_value("quantized").run()
    app.number_input(key="set_quantized").set_value(8).run()
    for _ in range(2):
        button = app.button(key="set_apply")
        assert button.label == "Set 4 ticked groups"
        button.click().run()
    recipe = recipe_of(app)
    for layer in (0, 1):
        for projection in ("gate", "up", "down"):
            codec = recipe.group_codec(layer, projection, 4).codec
            assert (codec == Quantized(bits=8)) == ((layer, projection) in keys)


def test_the_tick_that_was_edited_last_counts(plan: Plan) -> None:
    rows = rows_of(plan, {0})
    layer: Edits = {0: {"tick": True}}
    assert ticks_after(rows, {4}, layer) == {0, 1, 2, 4}  # of a layer that is closed, too
    assert not shows_other_ticks(rows, {0, 1, 2, 4}, layer)
    without_up: Edits = {0: {"tick": True}, 2: {"tick": False}}
    assert ticks_after(rows, {0, 1, 2}, without_up) == {0, 2}
    assert shows_other_ticks(rows, {0, 2}, without_up)
    assert ticks_after(rows, {0, 1, 2}, {0: {"tick": False}}) == set()


def said_and_ticked(app: AppTest) -> tuple[str, list[bool]]:
    """What the button says, and the ticks of the rows of layer 0."""
    label = app.button(key="set_apply").label
    return label, groups_editor(app).value["tick"].tolist()[:4]


def test_a_row_that_is_unticked_is_not_set(app: AppTest, mixtral_dir: Path) -> None:
    on(opened(app, mixtral_dir), "recipe")
    edit_groups(app, {0: {"tick": True}})
    assert said_and_ticked(app) == ("Set 3 ticked groups", [True] * 4)
    edit_groups(app, {0: {"tick": True}, 2: {"tick": False}})
    assert said_and_ticked(app) == ("Set 2 ticked groups", [False, True, False, True])
    edit_groups(app, {2: {"tick": True}})
    assert said_and_ticked(app) == ("Set 3 ticked groups", [True] * 4)
    edit_groups(app, {2: {"tick": True}, 0: {"tick": False}})
    assert said_and_ticked(app) == ("Set 6 groups", [False] * 4)


def test_ticks_outlast_whatever_draws_the_table_anew(app: AppTest, mixtral_dir: Path) -> None:
    on(opened(app, mixtral_dir), "recipe")
    only_up = ("Set 1 ticked group", [False, False, True, False])
    edit_groups(app, {2: {"tick": True}})
    edit_groups(app, {2: {"tick": True}, 0: {"codec": SEVERAL}})  # changes nothing
    assert said_and_ticked(app) == only_up
    app.button(key="recipe_open_all").click().run()
    assert said_and_ticked(app)[0] == only_up[0]
    assert len(groups_editor(app).value) == 2
    app.button(key="set_apply").click().run()
    app.button(key="recipe_open_all").click().run()
    assert said_and_ticked(app) == only_up
    edit_groups(app, {2: {"tick": False}})
    app.button(key="recipe_undo").click().run()
    assert said_and_ticked(app) == ("Set 6 groups", [False] * 4)

"""A recipe that cannot be used is never replaced in silence, and its text stays where it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core.files.stamp import CLOCK_NS
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.jobs import Workspace
from ders_core.recipe import FIRST_PRESET, Recipe, presets
from ders_core.ui import recipe_files
from ders_core.ui.opened import Open
from ders_core.ui.plain import plain
from ders_core.ui.preset_cards import ROW
from ders_core.ui.recipe_files import named_recipe, saved_recipes
from ders_core.ui.recipe_text import recipe_of

ROOT = Path(__file__).parents[2]

SHORT = "name: too-long\nrules:\n- &rule {codec: quantized, bits: 1, group_size: 128}\n"
SHORT += "- *rule\n" * 7000
"""Written out, each rule takes six times as many characters."""


def saved(workspace: Workspace, name: str, text: str) -> Path:
    workspace.recipes.mkdir(parents=True, exist_ok=True)
    file = workspace.recipes / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_saved_recipe_that_is_too_long_is_told(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """One whose short form could be read: it used to become the first preset once it was chosen."""
    assert len(SHORT) < MOST_CHARACTERS
    files = {
        saved(workspace, "fits", presets()["quantized-1bit"].to_yaml().replace("1bit", "one")): "",
        saved(workspace, "too-long", SHORT): str(MOST_CHARACTERS),
        saved(workspace, "longer", "#" * (MOST_CHARACTERS + 1)): str(MOST_CHARACTERS),
        saved(workspace, "no-recipe", "name: [1]\n"): "name",
    }
    before = {file: file.read_bytes() for file in files}
    opened(app, mixtral_dir)
    on(app, "recipe")
    menu = next(box for box in app.selectbox if box.label == "Saved recipes")
    assert menu.options == ["quantized-one"]
    told = {
        plain(file.name): next(line for line in words(app).splitlines() if plain(file.name) in line)
        for file, why in files.items()
        if why
    }
    for file, why in files.items():
        if why:
            assert plain(file.parent) in told[plain(file.name)]
            assert why in told[plain(file.name)]
    assert plain("fits.yaml") not in words(app)
    assert {file: file.read_bytes() for file in files} == before


@pytest.mark.parametrize("name", ["too-long", "lossless"])
def test_a_link_to_a_recipe_that_cannot_be_used_says_why(
    app: AppTest, workspace: Workspace, name: str
) -> None:
    """Another recipe of that name, a preset, is not what the link means."""
    file = saved(workspace, name, SHORT)
    app.query_params["recipe"] = name
    app.run()
    assert not app.exception
    assert len(app.error) == 1
    for fact in ("The recipe of the link was not taken", str(file), str(MOST_CHARACTERS)):
        assert plain(fact) in app.error[0].value
    assert app.query_params["recipe"] == FIRST_PRESET
    file.unlink()
    assert named_recipe(name) == presets().get(name)


@pytest.mark.parametrize("clock", [CLOCK_NS, -(10**15)])
def test_saved_recipes_are_those_of_the_files_as_they_are(
    app: AppTest, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """Each text is read once, however many there are, until its file is written again; whether that
    was just now or, by a negative clock, long ago."""
    reads: list[str] = []

    def counted(text: str) -> Recipe:
        reads.append(text)
        return recipe_of(text)

    monkeypatch.setattr(recipe_files, "recipe_of", counted)
    monkeypatch.setattr("ders_core.files.stamp.CLOCK_NS", clock)
    names = {f"r{number}" for number in range(100)}
    files = {name: saved(workspace, name, f"name: {name}\nrules: []\n") for name in names}
    for _ in range(3):
        assert saved_recipes().recipes.keys() == names
    assert named_recipe("r7") == Recipe(name="r7", rules=[])
    assert len(reads) == 100
    files["r7"].write_text("name: r7\nrules: {}\n", encoding="utf-8")
    files["r8"].unlink()
    found = saved_recipes()
    assert found.recipes.keys() == names - {"r7", "r8"}
    assert [each.file for each in found.unusable] == [files["r7"]]
    assert len(reads) == 101
    assert set(recipe_files._tried()) == {file for name, file in files.items() if name != "r8"}


def long_recipe(name: str) -> Recipe:
    """As long as a recipe may be."""
    rule = {"codec": "quantized", "bits": 2, "layers": "0"}
    recipe = Recipe.model_validate({"name": name, "rules": [rule]})
    rule["layers"] = "0" + ",0" * ((MOST_CHARACTERS - len(recipe.to_yaml())) // 2)
    return Recipe.model_validate({"name": name, "rules": [rule]})


def test_a_recipe_that_becomes_too_long_is_refused_where_it_does(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    """It could not be read again: the first preset would stand in its place."""
    opened(app, mixtral_dir)
    recipe = long_recipe("long")
    assert MOST_CHARACTERS - 8 < len(recipe.to_yaml()) <= MOST_CHARACTERS
    Open(str(mixtral_dir), recipe.to_yaml()).save(workspace)
    before = Open.load(workspace)
    again = on(AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run(), "recipe")
    assert not again.error
    again.text_input(key="recipe_name").set_value("longer than before").run()
    again.button(key="recipe_save").click().run()
    (error,) = again.error
    assert "not saved" in error.value
    assert str(MOST_CHARACTERS) in error.value
    assert not list(workspace.recipes.glob("*"))
    base = next(item for item in again.segmented_control if item.label == "Base")
    base.set_value("several means").run()
    (error,) = again.error
    assert str(MOST_CHARACTERS) in error.value
    assert not again.exception
    assert Open.load(workspace) == before


@pytest.mark.parametrize("preset", ["quantized-1bit", FIRST_PRESET])
def test_a_current_recipe_that_cannot_be_read_is_told(
    app: AppTest, workspace: Workspace, mixtral_dir: Path, preset: str
) -> None:
    """Whichever recipe is chosen is the current one from then on, also the one that stood in its
    place."""
    opened(app, mixtral_dir)
    file = workspace.path / "studio.json"
    state = json.loads(file.read_text(encoding="utf-8")) | {"recipe": "name: mine\nrulez: []\n"}
    file.write_text(json.dumps(state), encoding="utf-8")
    again = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    on(again, "recipe")
    assert len(again.error) == 1
    for fact in ("rulez", FIRST_PRESET, str(file)):
        assert plain(fact) in again.error[0].value
    assert json.loads(file.read_text(encoding="utf-8"))["recipe"] == state["recipe"]
    again.session_state[ROW] = True
    again.run().button(key=f"preset_{preset}").click().run()
    assert not again.error
    chosen = json.loads(file.read_text(encoding="utf-8"))["recipe"]
    assert Recipe.from_yaml(chosen) == presets()[preset]

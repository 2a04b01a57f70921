"""A recipe that cannot be used is never replaced in silence, and its text stays where it is."""

from __future__ import annotations

import json
from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.studio_pages import on, opened, words

from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.jobs import Workspace
from ders_core.recipe import FIRST_PRESET, presets
from ders_core.ui.plain import plain
from ders_core.ui.preset_cards import ROW

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


def test_a_current_recipe_that_cannot_be_read_is_told(
    app: AppTest, workspace: Workspace, mixtral_dir: Path
) -> None:
    opened(app, mixtral_dir)
    file = workspace.path / "studio.json"
    state = json.loads(file.read_text(encoding="utf-8")) | {"recipe": "name: mine\nrulez: []\n"}
    file.write_text(json.dumps(state), encoding="utf-8")
    again = AppTest.from_file(str(Path(__file__).parents[2] / "app.py"), default_timeout=60).run()
    on(again, "recipe")
    assert len(again.error) == 1
    for fact in ("rulez", FIRST_PRESET, str(file)):
        assert plain(fact) in again.error[0].value
    assert json.loads(file.read_text(encoding="utf-8"))["recipe"] == state["recipe"]
    again.session_state[ROW] = True
    again.run().button(key="preset_quantized-1bit").click().run()
    assert not again.error
    assert json.loads(file.read_text(encoding="utf-8"))["recipe"] != state["recipe"]

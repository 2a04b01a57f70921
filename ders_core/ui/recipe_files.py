"""Recipes kept in the workspace, one YAML file each."""

from __future__ import annotations

import re

from ders_core.errors import DersError, RecipeError
from ders_core.files.place_errors import writing
from ders_core.files.writer import write_text
from ders_core.recipe import Recipe, presets
from ders_core.ui.session import workspace

_NAME = re.compile(r"[\w][\w .+-]*")
"""What can be the name of a file, too."""


def named_recipe(name: str) -> Recipe | None:
    """The saved recipe of a name, or else the preset; None if there is none."""
    if not _NAME.fullmatch(name):
        return None
    try:
        text = (workspace().recipes / f"{name}.yaml").read_text(encoding="utf-8")
        return Recipe.from_yaml(text)
    except (DersError, OSError, UnicodeDecodeError):
        return presets().get(name)


def saved_recipes() -> dict[str, Recipe]:
    """Recipes by name; files that are not recipes are ignored."""
    recipes: dict[str, Recipe] = {}
    for file in sorted(workspace().recipes.glob("*.yaml")):
        try:
            recipe = Recipe.from_yaml(file.read_text(encoding="utf-8"))
        except (DersError, OSError, UnicodeDecodeError):
            continue
        recipes[recipe.name] = recipe
    return recipes


def save_recipe(recipe: Recipe) -> None:
    """Write or replace. Raises RecipeError if the name cannot be a file's, OutputError if the file
    cannot be written."""
    if not _NAME.fullmatch(recipe.name):
        raise RecipeError(
            f"{recipe.name!r} cannot be a file's name; use letters, digits, spaces, '.', '-', '+'"
        )
    directory = workspace().recipes
    file = directory / f"{recipe.name}.yaml"
    with writing(file):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(file, recipe.to_yaml())

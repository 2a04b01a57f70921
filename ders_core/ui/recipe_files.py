"""Recipes kept in the workspace, one YAML file each, and those that somebody typed or sent."""

from __future__ import annotations

import re

from ders_core.errors import DersError, RecipeError
from ders_core.files.place_errors import writing
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.files.writer import write_text
from ders_core.recipe import Recipe, presets
from ders_core.ui.session import workspace

_NAME = re.compile(r"[\w][\w .+-]*")
"""What can be the name of a file, too."""


def read_recipe(text: str, most: int = MOST_CHARACTERS) -> Recipe:
    """A recipe that somebody typed or sent.

    most: characters that `to_yaml` may make of it, which are more than those of a text in short
    forms; what is kept must be readable again. Raises RecipeError, with the line where it is known,
    and JobError if the recipe names files outside the allowed folders.
    """
    recipe = Recipe.from_yaml(text)
    written = len(recipe.to_yaml())
    if written > most:
        raise RecipeError(
            f"the recipe has {written} characters when it is written out, and at most {most} are "
            "taken here; give it fewer rules"
        )
    check_places(recipe)
    return recipe


def check_places(recipe: Recipe) -> None:
    """Raise JobError if the recipe names files outside the allowed folders."""
    for file in recipe.files:
        workspace().check_allowed(file)


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

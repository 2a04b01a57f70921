"""Recipes kept in the workspace, one YAML file each, and those that somebody typed or sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ders_core.errors import DersError, RecipeError
from ders_core.files.place_errors import writing
from ders_core.files.untrusted_yaml import MOST_CHARACTERS
from ders_core.files.writer import write_text
from ders_core.recipe import Recipe, presets
from ders_core.ui.session import workspace

_NAME = re.compile(r"[\w][\w .+-]*")
"""What can be the name of a file, too."""


@dataclass(frozen=True)
class UnusableFile:
    """A file in the folder of saved recipes, and why it is no recipe that can be used."""

    file: Path
    why: str


def read_recipe(text: str, most: int = MOST_CHARACTERS) -> Recipe:
    """A recipe that somebody typed or sent.

    most: characters that `to_yaml` may make of it, which are more than those of a text in short
    forms; what is kept must be readable again. Raises RecipeError, with the line where it is known,
    and JobError if the recipe names files outside the allowed folders.
    """
    recipe = _that_fits(text, most)
    check_places(recipe)
    return recipe


def _that_fits(text: str, most: int = MOST_CHARACTERS) -> Recipe:
    """As `read_recipe`, but the files that it names may be anywhere."""
    recipe = Recipe.from_yaml(text)
    written = len(recipe.to_yaml())
    if written > most:
        raise RecipeError(
            f"the recipe has {written} characters when it is written out, and at most {most} are "
            "taken here; give it fewer rules"
        )
    return recipe


def check_places(recipe: Recipe) -> None:
    """Raise JobError if the recipe names files outside the allowed folders."""
    for file in recipe.files:
        workspace().check_allowed(file)


@lru_cache(maxsize=64)
def _tried(text: str) -> Recipe | str:
    """The recipe of a saved text, or why it is none. Reading a long one takes seconds, and pages
    ask for all of them whenever they are drawn."""
    try:
        return _that_fits(text)
    except DersError as error:
        return str(error)


def named_recipe(name: str) -> Recipe | None:
    """The saved recipe of a name, or else the preset; None if there is none."""
    if not _NAME.fullmatch(name):
        return None
    try:
        text = (workspace().recipes / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return presets().get(name)
    tried = _tried(text)
    return tried if isinstance(tried, Recipe) else presets().get(name)


def saved_recipes() -> dict[str, Recipe]:
    """Recipes by name, without files that cannot be used."""
    return {recipe.name: recipe for recipe in _saved() if isinstance(recipe, Recipe)}


def unusable_files() -> list[UnusableFile]:
    """Files among the saved recipes that cannot be used."""
    return [file for file in _saved() if isinstance(file, UnusableFile)]


def _saved() -> Iterator[Recipe | UnusableFile]:
    for file in sorted(workspace().recipes.glob("*.yaml")):
        try:
            tried = _tried(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            tried = str(error)
        yield tried if isinstance(tried, Recipe) else UnusableFile(file, tried)


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
